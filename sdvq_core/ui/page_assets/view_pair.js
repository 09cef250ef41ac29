// Two pictures in one frame: swipe, flip in place, difference map.
const HEAT = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const setting = {gain: 2, map: 'heat', blink: null};

function drawPair() {
  const list = cells();
  if (!list.length) return;
  sides.a = clamp(sides.a, 0, list.length - 1);
  sides.b = clamp(sides.b, 0, list.length - 1);
  const labels = list.map((cell, index) => `${index + 1} · ${cell.label}`);
  fillSelect(find('[data-pick=a]'), labels, sides.a);
  fillSelect(find('[data-pick=b]'), labels, sides.b);
  fillSelect(find('[data-pick=row]'), board.rows.map(item => String(item.seed)), row);
  for (const side of ['a', 'b']) {
    const cell = list[sides[side]], image = find(`[data-side=${side}]`, big);
    setSource(image, cell.url);
    image.alt = cell.alt;
    setText(find(`[data-tag=${side}]`), `${side.toUpperCase()} · ${cell.label}`);
  }
  setSource(find('.cv-reference', big), list[0].state === 'done' ? list[0].url : '');
  const captions = find('.cv-captions');
  while (captions.children.length < 2) captions.append(buildCaption());
  ['a', 'b'].forEach((side, index) => drawCaption(captions.children[index], list[sides[side]], sides[side]));
  drawSplit();
  drawDifference();
}

function setSplit(value) {
  split = clamp(value, 0, 1);
  drawSplit();
}

function drawSplit() {
  big.style.setProperty('--split', `${split * 100}%`);
  const range = find('[data-range=split]');
  if (Number(range.value) !== Math.round(split * 100)) range.value = Math.round(split * 100);
  const button = find('[data-flip]');
  root.classList.toggle('flipped', flipped);
  button.setAttribute('aria-pressed', flipped);
  setText(button, flipped ? 'Showing B' : 'Showing A');
}

function pixels(image) {
  const copy = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = copy.getContext('2d', {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, copy.width, copy.height);
}

const heat = value => {
  const place = clamp(value, 0, 1) * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(place)), part = place - low;
  return HEAT[low].map((channel, index) => channel + (HEAT[low + 1][index] - channel) * part);
};

function drawDifference() {
  if (mode !== 'difference') return;
  const [a, b] = ['a', 'b'].map(side => find(`[data-side=${side}]`, big));
  const ready = [a, b].every(image => image.complete && image.naturalWidth);
  const same = ready && a.naturalWidth === b.naturalWidth && a.naturalHeight === b.naturalHeight;
  canvas.hidden = !same;
  if (!same) return setText(find('[data-out=difference]'), ready ? 'different sizes' : 'waiting for both pictures');
  const first = pixels(a), second = pixels(b).data, gain = 2 ** setting.gain;
  let largest = 0, sum = 0;
  for (let i = 0; i < second.length; i += 4) {
    const delta = [0, 1, 2].map(channel => Math.abs(first.data[i + channel] - second[i + channel]));
    largest = Math.max(largest, ...delta);
    const mean = (delta[0] + delta[1] + delta[2]) / 3;
    sum += mean;
    const colour = setting.map === 'heat' ? heat(mean * gain / 255) : delta.map(value => value * gain);
    first.data.set([...colour, 255], i);
  }
  canvas.width = first.width;
  canvas.height = first.height;
  canvas.getContext('2d').putImageData(first, 0, 0);
  setText(find('[data-out=gain]'), `×${gain}`);
  setText(find('[data-out=difference]'), `mean ${(sum / (second.length / 4)).toFixed(2)}, largest ${largest} of 255`);
}

for (const side of ['a', 'b']) {
  find(`[data-side=${side}]`, big).addEventListener('load', () => { layout(); drawDifference(); });
  find(`[data-pick=${side}]`).addEventListener('change', event => { sides[side] = Number(event.target.value); drawPair(); });
}
find('[data-pick=row]').addEventListener('change', event => { row = Number(event.target.value); drawPair(); });
find('[data-pick=map]').addEventListener('change', event => { setting.map = event.target.value; drawDifference(); });
find('[data-range=split]').addEventListener('input', event => setSplit(event.target.value / 100));
find('[data-range=gain]').addEventListener('input', event => { setting.gain = Number(event.target.value); drawDifference(); });
find('[data-flip]').addEventListener('click', () => { flipped = !flipped; drawSplit(); });
find('[data-blink]').addEventListener('change', event => {
  clearInterval(setting.blink);
  if (event.target.checked) setting.blink = setInterval(() => { flipped = !flipped; drawSplit(); }, 600);
});
