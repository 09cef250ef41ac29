// One zoom and pan for every picture. Small pictures are scaled by a whole number of screen pixels, nearest neighbour.
const ratio = () => window.devicePixelRatio || 1;
let fit = {factor: 1, width: 0};                     // screen pixels per image pixel at zoom 1, and its CSS width

function columnsFor(width, count) {
  if (solo >= 0) return 1;
  return clamp(Math.floor((width + GAP) / (MIN_COLUMN + GAP)), 1, Math.max(1, count));
}

function fitted(natural, width) {
  const whole = Math.floor(Math.min(width, TALLEST) * ratio() / natural);
  const factor = whole >= 1 ? whole : Math.min(width, TALLEST) * ratio() / natural;
  return {factor, width: natural * factor / ratio()};
}

function naturalSize() {
  const image = all('.cv-frame img').find(item => item.naturalWidth && !item.classList.contains('cv-reference'));
  const sharp = all('.cv-figure[data-state=done] img').find(item => item.naturalWidth) ?? image;
  return sharp ? [sharp.naturalWidth, sharp.naturalHeight] : [64, 64];
}

function layout() {
  const width = root.clientWidth;
  if (!width) return;
  const [wide, high] = naturalSize();
  const columns = columnsFor(width, cells().length);
  const column = mode === 'side' ? (width - GAP * (columns - 1)) / columns : width;
  fit = fitted(wide, Math.floor(column));
  root.style.setProperty('--columns', columns);
  root.style.setProperty('--frame', `${fit.width}px`);
  root.style.setProperty('--aspect', `${wide} / ${high}`);
  paint();
}

function paint() {
  const edge = 1 - 1 / view.k;
  view.x = clamp(view.x, 0, edge);
  view.y = clamp(view.y, 0, edge);
  const shown = fit.factor * view.k;
  const transform = `translate(${-view.x * view.k * 100}%, ${-view.y * view.k * 100}%) scale(${view.k})`;
  root.style.setProperty('--view', transform);
  root.style.setProperty('--rendering', shown >= 1 ? 'pixelated' : 'auto');
  root.classList.toggle('zoomed', view.k > 1);
  root.classList.toggle('holding', holding);
  setText(find('.cv-zoom output'), `×${shown >= 10 || Number.isInteger(shown) ? Math.round(shown) : shown.toFixed(2)}`);
  drawSplit();
}

function zoomTo(k, px = 0.5, py = 0.5) {
  const next = clamp(k, 1, Math.max(1, MOST_ZOOM / fit.factor));
  view = {k: next, x: view.x + px / view.k - px / next, y: view.y + py / view.k - py / next};
  paint();
}

function zoomStep(direction, px, py) {
  const shown = fit.factor * view.k;
  const step = direction > 0 ? (shown < 1 ? Math.max(shown, 1) / shown : 2) : 0.5;   // from a shrunk picture to 1:1 first
  zoomTo(view.k * (step === 1 ? 2 : step), px, py);
}

const within = (event, frame) => {
  const box = frame.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};

const fingers = new Map();
let drag = null;

function pressed(event) {
  const frame = event.target.closest('.cv-frame');
  if (!frame || event.button > 0) return;
  fingers.set(event.pointerId, event);
  const [x] = within(event, frame);
  const handle = mode === 'swipe' && frame === big && (view.k === 1 || Math.abs(x - split) < 0.06);
  drag = {frame, handle, px: event.clientX, py: event.clientY, view: {...view}, span: spread()};
  if (handle) setSplit(x);
  frame.setPointerCapture?.(event.pointerId);
}

const spread = () => {
  const [a, b] = [...fingers.values()];
  return b ? Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) : 0;
};

function moved(event) {
  if (!drag || !fingers.has(event.pointerId)) return;
  fingers.set(event.pointerId, event);
  const box = drag.frame.getBoundingClientRect();
  if (fingers.size > 1 && drag.span) {
    const [x, y] = within(event, drag.frame);
    view = {...drag.view};
    return zoomTo(drag.view.k * spread() / drag.span, clamp(x, 0, 1), clamp(y, 0, 1));
  }
  if (drag.handle) return setSplit((event.clientX - box.left) / box.width);
  if (view.k === 1) return;
  view.x = drag.view.x - (event.clientX - drag.px) / box.width / view.k;
  view.y = drag.view.y - (event.clientY - drag.py) / box.height / view.k;
  paint();
}

function released(event) {
  fingers.delete(event.pointerId);
  if (!fingers.size) drag = null;
}

for (const area of [stage, big]) {
  area.addEventListener('pointerdown', pressed);
  area.addEventListener('pointermove', moved);
  for (const name of ['pointerup', 'pointercancel', 'lostpointercapture']) area.addEventListener(name, released);
  area.addEventListener('dblclick', event => {
    const frame = event.target.closest('.cv-frame');
    if (frame) view.k > 1 ? zoomTo(1) : zoomStep(1, ...within(event, frame));
  });
  area.addEventListener('wheel', event => {
    const frame = event.target.closest('.cv-frame');
    const focused = [stage, pair].includes(document.activeElement);
    if (!frame || !(event.ctrlKey || focused)) return;          // never trap the page's own scrolling
    event.preventDefault();
    zoomStep(event.deltaY < 0 ? 1 : -1, ...within(event, frame));
  }, {passive: false});
}
