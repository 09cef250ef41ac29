// Hook plotly_click on the plots named in props.value; a plot's node is rebuilt with every new figure, so keep watching.
const ids = String(props.value || '').split(' ');
const hook = () => {
  for (const id of ids) {
    const plot = document.querySelector(`#${id} .js-plotly-plot`);
    if (!plot || plot.dataset.hooked || typeof plot.on !== 'function') continue;
    plot.dataset.hooked = 'yes';
    plot.on('plotly_click', event => {
      const data = event.points?.[0]?.customdata;
      if (data) trigger('pick', {name: data[0]});
    });
  }
};
let waiting = false;
new MutationObserver(() => {
  if (waiting) return;
  waiting = true;
  setTimeout(() => { waiting = false; hook(); }, 150);
}).observe(document.body, {childList: true, subtree: true});
hook();
