// The compare view's state and small helpers. All files of the view run as one script, in the order of compare_view.py.
const root = element.querySelector('.cv');
const find = (selector, from = root) => from.querySelector(selector);
const all = (selector, from = root) => [...from.querySelectorAll(selector)];
const stage = find('.cv-stage'), pair = find('.cv-pair'), big = find('.cv-big'), canvas = find('canvas');
const GAP = 14, MIN_COLUMN = 138, TALLEST = 512, MOST_ZOOM = 64;

let board = {run: '', rows: [], footer: ''};
let mode = 'side', row = 0, sides = {a: 0, b: 1}, split = 0.5, flipped = false, solo = -1, holding = false;
let view = {x: 0, y: 0, k: 1};                       // left and top as fractions of the picture, zoom over the fitted size

const cells = (index = row) => board.rows[index]?.cells ?? [];
const make = (tag, className = '', text = '') => Object.assign(document.createElement(tag), {className, textContent: text});
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const setSource = (image, url) => {
  if (image.getAttribute('src') === url) return;
  if (url) image.src = url; else image.removeAttribute('src');
};

function fillSelect(select, options, chosen) {
  const wanted = options.join('\u0000');
  if (select.dataset.options !== wanted) {
    select.replaceChildren(...options.map((text, index) => new Option(text, index)));
    select.dataset.options = wanted;
  }
  select.value = String(chosen);
}
