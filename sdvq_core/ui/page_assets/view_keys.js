// Keys, the toolbar, and redrawing when the server sends a new board.
function setMode(next) {
  mode = next;
  root.dataset.mode = next;
  all('.cv-modes button').forEach(button => button.setAttribute('aria-pressed', button.dataset.mode === next));
  if (next === 'flip') flipped = false;
  stage.hidden = next !== 'side' || !cells().length;
  pair.hidden = next === 'side' || !cells().length;
  drawPair();
  layout();
}

function setSolo(index) {
  solo = solo === index ? -1 : index;
  root.classList.toggle('solo', solo >= 0);
  drawStage();
  layout();
  if (solo >= 0) trigger('select', {index});
}

function reset() {
  solo = -1;
  holding = false;
  view = {x: 0, y: 0, k: 1};
  root.classList.remove('solo');
  setSplit(0.5);
  drawStage();
  layout();
}

function hold(on) {
  holding = on;
  paint();
}

const MODES = {s: 'side', w: 'swipe', f: 'flip', d: 'difference'};
const PAN = {ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1]};

function toggleHelp() {
  const keys = find('.cv-keys');
  keys.hidden = !keys.hidden;
  find('.cv-help').setAttribute('aria-expanded', !keys.hidden);
}

function keyed(event) {
  if (event.altKey || event.metaKey || event.ctrlKey || event.target.closest('select, input, a')) return false;
  const key = event.key, digit = Number(key), pan = PAN[key];
  if (event.target.closest('button') && (key === ' ' || key === 'Enter')) return false;
  if (digit >= 1 && digit <= cells().length && mode === 'side') setSolo(digit - 1);
  else if (digit >= 1 && digit <= cells().length) { sides.b = digit - 1; drawPair(); }
  else if (key === ' ' || key.toLowerCase() === 'r') hold(true);
  else if (key === 'Escape') { setMode('side'); reset(); }
  else if (key === '+' || key === '=') zoomStep(1);
  else if (key === '-') zoomStep(-1);
  else if (key === '?') toggleHelp();
  else if (MODES[key.toLowerCase()]) { setMode(MODES[key.toLowerCase()]); (mode === 'side' ? stage : pair).focus(); }
  else if (pan && view.k > 1) { view.x += pan[0] / view.k; view.y += pan[1] / view.k; paint(); }
  else return false;
  return true;
}

root.addEventListener('keydown', event => { if (keyed(event)) event.preventDefault(); });
root.addEventListener('keyup', event => { if (event.key === ' ' || event.key.toLowerCase() === 'r') hold(false); });
root.addEventListener('focusout', () => { if (holding) hold(false); });
all('.cv-modes button').forEach(button => button.addEventListener('click', () => setMode(button.dataset.mode)));
all('[data-zoom]').forEach(button => button.addEventListener('click', () => {
  if (button.dataset.zoom === 'reset') reset(); else zoomStep(button.dataset.zoom === 'in' ? 1 : -1);
}));
find('.cv-help').addEventListener('click', toggleHelp);
const holder = find('.cv-hold');
holder.addEventListener('pointerdown', () => hold(true));
for (const name of ['pointerup', 'pointerleave', 'pointercancel']) holder.addEventListener(name, () => hold(false));
holder.addEventListener('keydown', event => { if (event.key === ' ' || event.key === 'Enter') { hold(true); event.preventDefault(); } });
holder.addEventListener('keyup', () => hold(false));

function draw() {
  const next = props.value && props.value.rows ? props.value : {run: '', rows: [], footer: ''};
  const fresh = next.run !== board.run;
  board = next;
  if (row >= board.rows.length) row = 0;
  const some = cells().length > 0;
  if (fresh && some) {
    solo = -1;
    root.classList.remove('solo');
    sides = {a: 0, b: Math.min(cells().length - 1, 2)};
  }
  root.dataset.run = board.run;
  find('.cv-bar').hidden = !some;
  find('.cv-empty').hidden = some;
  root.classList.toggle('several', board.rows.length > 1);
  setText(find('.cv-footer'), board.footer ?? '');
  drawStage();
  stage.hidden = mode !== 'side' || !some;
  pair.hidden = mode === 'side' || !some;
  drawPair();
  layout();
}

watch('value', draw);
new ResizeObserver(layout).observe(root);
draw();
