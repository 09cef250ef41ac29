// Figures side by side: one per cell, kept across updates so that streamed pictures do not flicker.
function buildFigure() {
  const figure = make('figure', 'cv-figure');
  const frame = make('div', 'cv-frame'), image = make('img'), reference = make('img', 'cv-reference');
  image.draggable = reference.draggable = false;
  image.addEventListener('load', layout);
  frame.append(image, reference, make('span', 'cv-wait'));
  figure.append(frame, buildCaption());
  return figure;
}

function buildCaption() {
  const caption = make('figcaption', 'cv-caption');
  const head = make('div', 'cv-head');
  const save = make('a', 'cv-save', 'PNG');
  head.append(make('span', 'cv-digit'), make('strong', 'cv-label'), make('span', 'cv-badge', 'reference'), save);
  const size = make('div', 'cv-size');
  size.append(make('b', 'cv-bytes'), make('span', 'cv-bits'), make('span', 'cv-ratio'));
  caption.append(head, size, make('dl', 'cv-scores'), make('div', 'cv-note'), make('div', 'cv-memory'));
  return caption;
}

function drawCaption(caption, cell, index) {
  setText(find('.cv-digit', caption), String(index + 1));
  setText(find('.cv-label', caption), cell.label);
  find('.cv-label', caption).title = cell.arm;
  find('.cv-badge', caption).hidden = index !== 0;
  setText(find('.cv-bytes', caption), cell.size);
  setText(find('.cv-bits', caption), `${cell.bits} bits/weight`);
  setText(find('.cv-ratio', caption), cell.ratio);
  setText(find('.cv-note', caption), cell.note);
  setText(find('.cv-memory', caption), cell.memory);
  const save = find('.cv-save', caption);
  save.hidden = cell.state !== 'done';
  if (cell.state === 'done') { save.href = cell.url; save.download = cell.file; save.title = `Save ${cell.file}`; }
  const scores = find('.cv-scores', caption), wanted = JSON.stringify(cell.scores);
  if (scores.dataset.shown === wanted) return;
  scores.dataset.shown = wanted;
  scores.replaceChildren(...cell.scores.map(([name, value]) => {
    const entry = make('div');
    entry.append(make('dt', '', name), make('dd', '', value));
    return entry;
  }));
}

function drawStage() {
  const groups = board.rows.map((item, index) => {
    const group = stage.children[index] ?? make('div', 'cv-row');
    if (!group.firstChild) group.append(make('h4', 'cv-seed'), make('div', 'cv-grid'));
    const grid = find('.cv-grid', group);
    find('.cv-seed', group).hidden = board.rows.length < 2;
    setText(find('.cv-seed', group), `Seed ${item.seed}`);
    while (grid.children.length > item.cells.length) grid.lastChild.remove();
    while (grid.children.length < item.cells.length) grid.append(buildFigure());
    item.cells.forEach((cell, column) => drawFigure(grid.children[column], cell, item.cells[0], column));
    return group;
  });
  while (stage.children.length > groups.length) stage.lastChild.remove();
  groups.forEach((group, index) => { if (stage.children[index] !== group) stage.append(group); });
}

function drawFigure(figure, cell, reference, column) {
  figure.dataset.state = cell.state;
  figure.classList.toggle('on', solo === column);
  const [image, overlay, wait] = figure.firstElementChild.children;
  image.hidden = !cell.url;
  setSource(image, cell.url);
  image.alt = cell.alt || `${cell.label}, ${cell.note}`;
  setSource(overlay, reference.state === 'done' ? reference.url : '');
  overlay.alt = 'the reference';
  setText(wait, cell.url ? '' : cell.note);
  drawCaption(figure.lastElementChild, cell, column);
}
