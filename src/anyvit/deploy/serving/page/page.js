// The page of a serving AnyViT: asks about one image, and shows what the load does to the answers.
// Whatever the server says goes in as text, never as markup.

const SECONDS = 120; // as far back as /v1/load remembers
const SPARE = 1.05; // the budget language counts a latency with 5 % to spare
const NONE = '–';

const $ = (id) => document.getElementById(id);

function make(tag, text = '', name = '') {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = name;
  return node;
}

// Written only where it differs: a live region would be read out again, a selection lost.
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const percent = (share, digits = 1) => (share == null ? NONE : `${(100 * share).toFixed(digits)}\u00a0%`);

function time(ms) {
  if (ms == null) return NONE;
  return ms < 1000 ? `${Number(ms.toPrecision(3))}\u00a0ms` : `${Number((ms / 1000).toPrecision(3))}\u00a0s`;
}

// ---- Asking the server

class Trouble extends Error {
  constructor({ type, message, hint }, response) {
    super(message);
    const wait = Number(response?.headers.get('Retry-After')) || 1;
    Object.assign(this, { type, hint, wait, status: response?.status });
  }
}

async function fetchJson(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    const hint = 'See whether it is still running; a very large file may also have been cut off.';
    throw new Trouble({ type: 'unreachable', message: 'The server did not answer.', hint });
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const unsaid = { type: `HTTP ${response.status}`, message: `No answer: ${response.statusText || response.status}.` };
  throw new Trouble(body?.message ? body : unsaid, response);
}

// Troubles of asking and of watching come and go on their own: `of` says whose this one is.
function showTrouble(of, trouble, next = '') {
  const box = $(`trouble-${of}`);
  const [message, hint, type] = box.querySelectorAll('p');
  put(message, trouble?.message ?? '');
  put(hint, [trouble?.hint, next].filter(Boolean).join(' '));
  put(type, trouble?.type ?? '');
  box.hidden = !trouble;
}

// ---- One image and its answer

let file = null;
let asking = null; // the question under way: a newer one takes its place
let retry = null;

async function ask() {
  asking?.abort();
  clearTimeout(retry);
  if (!file) return;
  const mine = (asking = new AbortController());
  const query = new URLSearchParams({ top_k: Math.min(3, model?.classes.length ?? 3) });
  if (bound()) query.set('budget', `latency<=${bound()}ms`);
  const form = new FormData();
  form.append('image', file, file.name);
  $('answer').ariaBusy = 'true';
  const begun = performance.now();
  try {
    const reply = await fetchJson(`/v1/predict?${query}`, { method: 'POST', body: form, signal: mine.signal });
    const [answer] = reply.predictions;
    if (answer.error) throw new Trouble({ type: 'unreadable_image', message: answer.error });
    showTrouble('ask', null);
    showAnswer(answer, reply.total_ms, performance.now() - begun);
  } catch (trouble) {
    if (mine.signal.aborted) return;
    if (!(trouble instanceof Trouble)) throw trouble;
    const soon = trouble.status === 503; // it is starting: worth another try
    if (soon) retry = setTimeout(ask, 1000 * trouble.wait);
    $('answer').hidden = true;
    $('blank').hidden = true;
    showTrouble('ask', trouble, soon ? `It will be asked again in ${trouble.wait} s.` : '');
  }
  $('answer').ariaBusy = 'false';
}

function showAnswer(answer, total, latency) {
  const { label, probability, top, candidate, accuracy, waited_ms: waited, computed_ms: computed } = answer;
  $('blank').hidden = true;
  $('answer').hidden = false;
  put($('label'), label);
  put($('candidate'), candidate);
  paint($('candidate'), candidate);
  put($('accuracy'), accuracy == null ? 'of unknown accuracy' : `known to be right ${percent(accuracy)} of the time`);
  $('top').replaceChildren(...top.map(topRow));
  put($('latency'), time(latency));
  const parts = {
    travelled: Math.max(0, latency - total), // to the server and back
    prepared: Math.max(0, total - waited - computed), // read, decoded, resized
    waited,
    computed,
  };
  $('times').replaceChildren(...Object.entries(parts).map(timeBar));
  $('parts').replaceChildren(...Object.entries(parts).map(timePart));
  put($('said'), `${label}, ${percent(probability)}, from ${candidate}, in ${time(latency)}.`);
}

function topRow([name, share]) {
  const row = make('li');
  row.append(make('span', name), make('b', percent(share)), make('i'));
  row.lastChild.style.width = `${100 * share}%`;
  return row;
}

// As wide as it took long.
function timeBar([name, ms]) {
  const bar = make('i', '', name);
  bar.style.flexGrow = ms;
  return bar;
}

function timePart([name, ms]) {
  const part = make('div');
  part.append(make('dt', name, name), make('dd', time(ms)));
  return part;
}

function take(files) {
  if (!files.length) return;
  file = files[0];
  URL.revokeObjectURL($('image').src);
  $('image').src = URL.createObjectURL(file);
  put($('name'), file.name + (files.length > 1 ? ` (the first of ${files.length})` : ''));
  ask();
}

$('image').addEventListener('load', ({ target }) => {
  target.hidden = false;
  target.alt = `The image you gave: ${file.name}.`;
  target.classList.toggle('tiny', target.naturalWidth < 100); // its pixels shall be seen, not smeared
  put($('invitation'), 'Drop another image here');
});
$('image').addEventListener('error', ({ target }) => {
  target.hidden = true; // the server may read what a browser cannot show
  put($('name'), `${file.name}: this browser cannot show it`);
});
$('file').addEventListener('change', ({ target }) => {
  take(target.files);
  target.value = ''; // the same file may be chosen again
});
document.addEventListener('paste', (event) => take(event.clipboardData.files));
// Anywhere on the page: a near miss would otherwise leave the page for the image.
document.addEventListener('dragover', (event) => {
  event.preventDefault();
  $('drop').classList.add('over');
});
document.addEventListener('dragleave', (event) => event.relatedTarget || $('drop').classList.remove('over'));
document.addEventListener('drop', (event) => {
  event.preventDefault();
  $('drop').classList.remove('over');
  const { files } = event.dataTransfer;
  if (files.length) take(files);
  else showTrouble('ask', { message: 'That was no file.', hint: 'Save the image first, then drop it here.' });
});
$('again').addEventListener('click', ask);

// ---- The model and the budget

let model = null;
let stops = []; // bounds in ms, from the fastest candidate on; behind the last lies "no bound"

const served = () => model?.candidates.filter((candidate) => candidate.served) ?? [];
const milliseconds = (candidate) => candidate.costs.latency * 1000;
const bound = () => stops[$('budget').value];

// A short figure that leaves a candidate of so many ms inside: 4.1 ms is inside 4.31 ms.
function stopAbove(ms) {
  const least = ms * (SPARE + 0.001);
  const digit = 10 ** (Math.floor(Math.log10(least)) - 2);
  return Number((Math.ceil(least / digit) * digit).toPrecision(3));
}

// Blue answers best, orange fastest: --part says how far down the list a candidate is.
function paint(node, id) {
  const place = served().findIndex((candidate) => candidate.id === id);
  node.classList.toggle('stranger', place < 0);
  node.style.setProperty('--part', place < 0 ? 0 : place / Math.max(1, served().length - 1));
}

async function learnModel() {
  model = await fetchJson('/v1/model');
  const before = bound();
  stops = served().map(milliseconds).filter((ms) => ms > 0).map(stopAbove);
  stops = [...new Set(stops)].sort((one, other) => one - other);
  $('budget').max = stops.length;
  $('budget').value = stops.includes(before) ? stops.indexOf(before) : stops.length;
  $('budget').disabled = !stops.length;
  $('stops').replaceChildren(...stops.map(() => make('i')), make('i'));
  describeBound();
  showModel();
}

function showModel() {
  const { classes, candidates, device, measured_here: here } = model;
  const more = classes.length > 12 ? ` and ${classes.length - 12} more` : '';
  put($('classes'), `It knows ${classes.length} classes: ${classes.slice(0, 12).join(', ')}${more}.`);
  const where = here ? 'here' : 'elsewhere, and are unproven here';
  put($('measured'), `The load calls for the candidate in bold. Latencies were measured ${where}: ${device}.`);
  $('legend').replaceChildren(...served().map(legendRow));
  const left = candidates.filter((candidate) => !candidate.served);
  $('left').hidden = !left.length;
  put($('left-count'), `${left.length} not served`);
  $('left-list').replaceChildren(...left.map(({ id, why }) => make('li', `${id}: ${why}`)));
}

function describeBound() {
  const ms = bound();
  const inside = served().filter((candidate) => !ms || milliseconds(candidate) * SPARE <= ms);
  const [best] = inside;
  put($('bound'), ms ? `at most ${time(ms)}` : 'no bound');
  const all = served().length;
  const chosen = `the most accurate is ${best?.id} (${percent(best?.accuracy)})`;
  const free = `The load alone decides which of ${all} candidates answers, to keep ${time(model.slo_ms)}.`;
  put($('inside'), ms ? `${inside.length} of ${all} candidates inside; ${chosen}.` : free);
  $('budget').setAttribute('aria-valuetext', $('bound').textContent);
  [...$('stops').children].forEach((tick, index) => tick.classList.toggle('in', index <= Number($('budget').value)));
}

let settled = null;
$('budget').addEventListener('input', () => {
  describeBound();
  clearTimeout(settled);
  settled = setTimeout(ask, 150); // one question where the slider rests, not one at each stop it passes
});

// ---- The load

function legendRow({ id, accuracy, costs }) {
  const row = make('tr');
  const head = make('th');
  const name = make('span', id, 'swatch');
  head.scope = 'row';
  paint(name, id);
  head.append(name);
  const latency = costs?.latency ? time(costs.latency * 1000) : NONE;
  row.append(head, ...[percent(accuracy), latency, NONE, NONE].map((figure) => make('td', figure, 'n')));
  row.dataset.id = id;
  return row;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

function showLoad(load) {
  const last = load.history.at(-1);
  const at = new Map(load.history.map((second) => [second.at, second]));
  // By the clock, not by place: a second may be missing.
  const seconds = Array.from({ length: SECONDS }, (_, index) => at.get(last?.at - SECONDS + 1 + index));
  const whole = {};
  for (const second of load.history) {
    for (const [id, count] of Object.entries(second.candidates)) whole[id] = (whole[id] ?? 0) + count;
  }
  const known = new Set(served().map(({ id }) => id));
  const order = [...known, ...Object.keys(whole).filter((id) => !known.has(id))];
  const told = new Set([...$('legend').children].map((row) => row.dataset.id));
  for (const id of order.filter((one) => !told.has(one))) $('legend').append(legendRow({ id }));

  const share = (counts, id) => percent((counts?.[id] ?? 0) / (sum(Object.values(counts ?? {})) || 1), 0);
  for (const row of $('legend').children) {
    put(row.children[3], share(last?.candidates, row.dataset.id));
    put(row.children[4], share(whole, row.dataset.id));
    row.classList.toggle('chosen', row.dataset.id === load.level);
    row.ariaCurrent = String(row.dataset.id === load.level);
  }
  const lost = ['shed', 'late', 'failed'].filter((kind) => last?.[kind]).map((kind) => `, ${last[kind]} ${kind}`);
  put($('rate'), String(last?.requests ?? 0));
  put($('lost'), `requests/s${lost.join('')}`);
  put($('p99'), time(last?.p99_ms));
  const over = last?.p99_ms > load.slo_ms;
  put($('objective'), `p99 latency, objective ${time(load.slo_ms)}${over ? ' missed' : ''}`);
  $('p99').classList.toggle('bad', over);
  put($('mean'), percent(last?.accuracy));
  put($('queue'), String(load.queue));
  const now = order.filter((id) => last?.candidates[id]).map((id) => `${id} ${share(last.candidates, id)}`);
  drawChart(seconds, order);
  $('chart').ariaLabel = inWords(load.history, now);
}

function inWords(history, now) {
  const last = history.at(-1);
  const most = Math.max(0, ...history.map(({ requests }) => requests));
  const shed = sum(history.map((second) => second.shed));
  return (
    `Load of the last two minutes: ${last?.requests ?? 0} requests in the last second, at most ${most} in one, ` +
    `${shed} shed in all. Answered now by ${now.join(', ') || 'none'}; mean accuracy ${percent(last?.accuracy)}.`
  );
}

// ---- The chart: three plots over one clock

const LEFT = 46; // room for the figures of the axes
const HEIGHT = 430;

// The next round number, whose half is round, too.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.6, 2, 3, 4, 5, 6, 8, 10].find((digit) => digit * power >= value);
}

class Chart {
  constructor(svg) {
    this.svg = svg;
    this.width = Math.max(240, svg.clientWidth); // one unit is one pixel: letters keep their size
    this.marks = [];
  }

  x(second) {
    return (LEFT + ((this.width - LEFT - 1) * second) / SECONDS).toFixed(1);
  }

  mark(tag, attributes, text = '') {
    const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    this.marks.push(node);
    return node;
  }

  // Gives the height of a value between the first and the last tick.
  axis(title, [top, bottom], ticks, say) {
    const [low, high] = [ticks[0], ticks.at(-1)];
    const y = (value) => (bottom - ((bottom - top) * (value - low)) / (high - low)).toFixed(1);
    this.mark('text', { x: 0, y: top - 10, class: 'title' }, title);
    for (const tick of ticks) {
      this.mark('line', { x1: LEFT, x2: this.width, y1: y(tick), y2: y(tick) });
      this.mark('text', { x: LEFT - 8, y: Number(y(tick)) + 4, 'text-anchor': 'end' }, say(tick));
    }
    return y;
  }

  // What lies between two values in each second. One outline, as single bars would show seams.
  band(y, low, high, name) {
    const over = high.map((value, second) => `V${y(value)}H${this.x(second + 1)}`);
    const under = low.map((value, second) => `V${y(value)}H${this.x(second)}`).reverse();
    return this.mark('path', { d: `M${this.x(0)} ${y(high[0])}${over.join('')}${under.join('')}Z`, class: name });
  }

  show() {
    this.svg.setAttribute('viewBox', `0 0 ${this.width} ${HEIGHT}`);
    this.svg.replaceChildren(...this.marks);
  }
}

function drawChart(seconds, order) {
  const chart = new Chart($('chart'));
  drawRequests(chart, seconds);
  drawShares(chart, seconds, order);
  drawAccuracy(chart, seconds);
  const clock = { '2 min ago': 'start', '1 min ago': 'middle', now: 'end' };
  Object.entries(clock).forEach(([text, anchor], minute) => {
    chart.mark('text', { x: chart.x(60 * minute), y: HEIGHT - 6, 'text-anchor': anchor }, text);
  });
  chart.show();
}

function drawRequests(chart, seconds) {
  const count = (kind) => seconds.map((second) => second?.[kind] ?? 0);
  let level = count('requests');
  const most = roundUp(Math.max(10, ...level));
  const y = chart.axis('requests a second', [24, 124], [0, most / 2, most], String);
  if (!sum(level)) {
    chart.mark('text', { x: chart.x(SECONDS / 2), y: 78, 'text-anchor': 'middle' }, 'none in the last two minutes');
  }
  let right = chart.width;
  for (const kind of ['failed', 'shed']) {
    const lost = count(kind);
    const below = level.map((value, second) => value - lost[second]);
    chart.band(y, below, level, kind);
    level = below;
    if (!sum(lost)) continue;
    chart.mark('rect', { x: right - 10, y: 5, width: 10, height: 10, class: kind });
    chart.mark('text', { x: right - 15, y: 14, 'text-anchor': 'end' }, kind);
    right -= 60;
  }
  chart.band(y, level.map(() => 0), level, 'kept');
}

function drawShares(chart, seconds, order) {
  const y = chart.axis('answered by', [164, 304], [0, 0.5, 1], (tick) => `${100 * tick} %`);
  const totals = seconds.map((second) => sum(Object.values(second?.candidates ?? {})));
  let edge = totals.map(() => 1); // the most accurate hangs from the top, as in the table
  for (const id of order) {
    const next = edge.map((value, second) => value - (seconds[second]?.candidates[id] ?? 0) / (totals[second] || 1));
    paint(chart.band(y, next, edge, 'part'), id);
    edge = next;
  }
}

function drawAccuracy(chart, seconds) {
  const known = [...served(), ...seconds].map((one) => one?.accuracy).filter(Number.isFinite);
  const low = Math.max(0, Math.floor(20 * Math.min(...known, 1) - 0.2) / 20);
  const high = Math.min(1, Math.ceil(20 * Math.max(...known, low + 0.05)) / 20);
  const y = chart.axis('mean accuracy', [344, 404], [low, high], (tick) => `${Math.round(100 * tick)} %`);
  const line = seconds.map((second, index) => {
    if (second?.accuracy == null) return '';
    const go = seconds[index - 1]?.accuracy == null ? `M${chart.x(index)} ` : 'V'; // the pen is lifted over a gap
    return `${go}${y(second.accuracy)}H${chart.x(index + 1)}`;
  });
  chart.mark('path', { d: line.join(''), class: 'mean' });
}

// ---- Watching

let watching = null;
let latest = null;
let busy = false;
let fresh = false; // after an absence of the server the model may be another one

async function watch() {
  clearTimeout(watching);
  if (busy || document.hidden) return; // a hidden tab asks nothing
  busy = true;
  try {
    const load = await fetchJson('/v1/load', { signal: AbortSignal.timeout(5000) });
    if (!fresh) await learnModel();
    fresh = true;
    latest = load;
    showLoad(load);
    showState(load.ready ? 'ready' : 'not ready');
    showTrouble('watch', null);
  } catch (trouble) {
    if (!(trouble instanceof Trouble)) throw trouble;
    fresh = false;
    showState(trouble.status === 503 ? 'not ready' : trouble.type);
    showTrouble('watch', trouble, 'Asked again every second.');
  } finally {
    busy = false;
    watching = setTimeout(watch, 1000);
  }
}

function showState(state) {
  put($('state'), state);
  $('state').classList.toggle('good', state === 'ready');
  $('state').classList.toggle('bad', state !== 'ready');
}

document.addEventListener('visibilitychange', watch);
new ResizeObserver(() => latest && showLoad(latest)).observe($('chart'));
watch();
