// The page: what a person does becomes one request after the other, and each answer is shown whole.
//
// Names and messages are put in as text, never as markup. Coordinates are pixels of the picture, its left and upper
// edges being 0.

'use strict';

const $ = (id) => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';
const DRAG = 4;  // CSS pixels; a shorter drag is a click
const stage = $('canvas');

let session = '';       // its key, which no other page knows
let view = null;        // what the server said last
let windows = {};       // name: [centre, width]
let largest = Infinity; // bytes of a file
let shownPicture = '';  // the key of the picture that is shown
let links = [];         // of files to take away
let frame = null;       // the element with the picture and what lies on it
let place = {x: 0, y: 0, scale: 1};
let press = null;       // the pointer, while it is down
let carrying = false;
const MOST_PLACES = 400;  // of a line; the server takes a few more

// ---------------------------------------------------------------- the server

async function ask(method, path, body) {
    const headers = session ? {'X-Session': session} : {};
    const answer = await fetch(path, {method, headers, body});
    if (answer.ok) return answer;
    let said = `the app answered ${answer.status}`;
    try { said = (await answer.json()).error || said; } catch { /* the guard answers in plain text */ }
    throw new Error(said);
}

let chain = Promise.resolve();
let waiting = 0;

// One after the other, so that what is shown last is what was done last. -> whether it went well
function inTurn(work) {
    waiting += 1;
    const busy = setTimeout(() => { $('busy').hidden = false; }, 300);
    const mine = chain.then(async () => {
        try {
            await work();
            return true;
        } catch (error) {
            tell(error instanceof TypeError ? 'the app does not answer; is it still running?' : error.message);
            return false;
        } finally {
            clearTimeout(busy);
            waiting -= 1;
            if (!waiting) $('busy').hidden = true;
        }
    });
    chain = mine;
    return mine;
}

const act = (event) => inTurn(async () => {
    const answer = await ask('POST', 'event', JSON.stringify(event));
    quiet();
    await show((await answer.json()).view);
});

const open = (files) => inTurn(async () => {
    const large = files.find((file) => file.size > largest);
    if (large) throw new Error(`${large.name}: has more than ${Math.round(largest / 1e6)} MB, the most of one file`);
    let answer = null;
    for (const [number, file] of files.entries()) {
        const more = number + 1 < files.length ? '&more=1' : '';
        answer = await ask('PUT', `upload?name=${encodeURIComponent(file.name)}${more}`, file);
    }
    quiet();
    await show((await answer.json()).view);
});

function tell(words, kind = '') {
    $('message').textContent = words;
    $('message').className = kind;
    $('message').hidden = false;
}

const quiet = () => { $('message').hidden = true; };

// ---------------------------------------------------------------- what is shown

function element(name, attributes = {}, text = '') {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
}

function drawn(name, attributes, parent) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.append(made);
    return made;
}

async function show(next) {
    const other = !view || next.opened !== view.opened;
    view = next;
    if (other) forgetFiles();
    await showPicture(other);
    drawMarks();
    showObjects();
    showSettings();
}

async function showPicture(other) {
    if (!view.picture) return;
    if (view.picture !== shownPicture) {
        const address = URL.createObjectURL(await (await ask('GET', 'picture')).blob());
        const image = new Image();
        image.src = address;
        image.draggable = false;
        image.alt = '';
        await image.decode();
        if (!frame) {
            stage.querySelector('.empty').remove();
            frame = element('div', {class: 'picture'});
            stage.prepend(frame);
        }
        URL.revokeObjectURL(frame.querySelector('img')?.src || '');
        frame.replaceChildren(image, document.createElementNS(SVG, 'svg'));
        frame.dataset.width = view.width;
        frame.dataset.height = view.height;
        frame.style.width = `${view.width}px`;
        frame.style.height = `${view.height}px`;
        shownPicture = view.picture;
        showBrightness();
    }
    if (other) fit();
}

function drawMarks() {
    if (!frame) return;
    const svg = frame.querySelector('svg'), look = view.look;
    svg.replaceChildren();
    svg.setAttribute('viewBox', `0 0 ${view.width} ${view.height}`);
    const size = fitting() / place.scale;  // prompts keep their size on the screen
    const pixel = 1 / place.scale;  // of the screen
    const thick = look.line * size, radius = look.radius * size;
    if ($('masks').checked) {
        for (const one of view.objects.filter((one) => one.path)) {
            const painted = {fill: one.colour, 'fill-opacity': look.tint, stroke: one.colour, 'stroke-width': 2 * pixel};
            drawn('path', {class: 'outline', d: one.path, 'fill-rule': 'evenodd', ...painted}, svg);
        }
    }
    for (const one of view.objects.filter((one) => one.found)) {
        for (const [line, on] of one.strokes) {
            const stroke = drawn('g', {class: 'stroke'}, svg);
            const look_ = {d: pathOf(line), fill: 'none', 'stroke-linecap': 'round', 'stroke-linejoin': 'round'};
            drawn('path', {...look_, stroke: 'black', 'stroke-opacity': look.rim, 'stroke-width': radius + 2 * thick}, stroke);
            drawn('path', {...look_, stroke: (on ? look.on : look.off)[0], 'stroke-width': radius}, stroke);
        }
        if (one.lasso) {
            const lasso = drawn('g', {class: 'lasso'}, svg), d = pathOf(one.lasso) + 'Z';
            drawn('path', {d, fill: 'none', stroke: 'black', 'stroke-opacity': look.rim, 'stroke-width': 3 * thick}, lasso);
            drawn('path', {d, fill: 'none', stroke: one.colour, 'stroke-width': thick}, lasso);
        } else if (one.box) {
            const [x0, y0, x1, y1] = one.box;
            const box = drawn('g', {class: 'box'}, svg);
            const edges = {x: x0, y: y0, width: x1 - x0, height: y1 - y0, fill: 'none'};
            drawn('rect', {...edges, stroke: 'black', 'stroke-opacity': look.rim, 'stroke-width': 3 * thick}, box);
            drawn('rect', {...edges, stroke: one.colour, 'stroke-width': thick}, box);
        }
        for (const [x, y, on] of one.clicks) {
            const [fill, sign] = on ? look.on : look.off;
            const arm = look.sign * radius;
            const click = drawn('g', {class: 'click', transform: `translate(${x} ${y})`}, svg);
            drawn('circle', {r: radius + thick / 2, fill, stroke: 'black', 'stroke-width': thick}, click);
            drawn('path', {d: `M${-arm} 0H${arm}` + (on ? `M0 ${-arm}V${arm}` : ''), stroke: sign, 'stroke-width': radius / 4}, click);
        }
    }
    drawn('path', {class: 'band line', 'stroke-width': pixel, 'stroke-dasharray': `${4 * pixel} ${3 * pixel}`}, svg);
    drawn('rect', {class: 'band', 'stroke-width': pixel, 'stroke-dasharray': `${4 * pixel} ${3 * pixel}`}, svg);
}

function showObjects() {
    const rows = view.objects.map((one, number) => {
        const row = element('tr', {class: number === view.current ? 'current' : ''});
        const swatch = element('span', {class: 'swatch'});
        swatch.style.background = one.colour;
        const first = element('td');
        first.append(swatch);
        const name = element('td', {}, one.name);
        if (one.closer) name.append(element('small', {}, 'seen closer'));
        row.append(first, name);
        row.append(element('td', {}, one.found ? `IoU ${one.iou.toFixed(2)}` : ''));
        row.append(element('td', {}, one.found ? `${one.area} px` : ''));
        row.addEventListener('click', () => act({do: 'choose', number}));
        return row;
    });
    $('objects').replaceChildren(...rows);
    if (document.activeElement !== $('name')) $('name').value = view.objects[view.current].name;
}

function showSettings() {
    $('file').textContent = view.file;
    $('slices').hidden = view.slices < 2;
    $('slice').max = Math.max(view.slices - 1, 0);
    $('slice').value = view.slice;
    $('slice-shown').textContent = `${view.slice} of 0 to ${view.slices - 1}`;
    $('marked').textContent = view.marked.length ? `marked: ${view.marked.join(', ')}` : '';
    $('adapters-row').hidden = view.adapters === null;
    $('adapters').checked = view.adapters === true;
    const seen = view.window.values || view.window.range;
    $('window').hidden = !view.window.there;
    $('doubt').textContent = view.doubt;
    if (seen) {
        $('window-level').value = (seen[0] + seen[1]) / 2;
        $('window-width').value = seen[1] - seen[0];
        $('window-preset').value = presetOf(view.window.values);
    }
}

// ---------------------------------------------------------------- the window, and the brightness

const edges = ([centre, width]) => [centre - width / 2, centre + width / 2];
const same = (one, other) => one && other && one[0] === other[0] && one[1] === other[1];

function presetOf(values) {
    if (!values) return 'each';
    if (same(values, view.window.trained)) return 'trained';
    return Object.keys(windows).find((name) => same(edges(windows[name]), values)) || 'other';
}

function offerWindows(trained) {
    const options = [['each', "each slice's own range"], ...(trained ? [['trained', 'as the model was trained']] : [])];
    options.push(...Object.keys(windows).map((name) => [name, name.replace('_', ' ')]), ['other', 'as below']);
    $('window-preset').replaceChildren(...options.map(([value, text]) => element('option', {value}, text)));
}

function setWindow(values) {
    act(values ? {do: 'window', low: values[0], high: values[1]} : {do: 'window'});
}

$('window-preset').addEventListener('change', () => {
    const name = $('window-preset').value;
    if (name === 'each') setWindow(null);
    else if (name === 'trained') setWindow(view.window.trained);
    else if (name !== 'other') setWindow(edges(windows[name]));
});
for (const id of ['window-level', 'window-width']) {
    $(id).addEventListener('change', () => setWindow(edges([Number($('window-level').value), Number($('window-width').value)])));
}

function showBrightness() {
    const image = frame?.querySelector('img');
    if (image) image.style.filter = `brightness(${$('brightness').value}) contrast(${$('contrast').value})`;
}

for (const id of ['brightness', 'contrast']) {
    $(id).addEventListener('input', showBrightness);
    $(id).addEventListener('dblclick', () => { $(id).value = 1; showBrightness(); });
}
$('masks').addEventListener('change', drawMarks);

// ---------------------------------------------------------------- zoom and pan

const fitting = () => Math.min(stage.clientWidth / view.width, stage.clientHeight / view.height) * 0.97;

function move() {
    frame.style.transform = `translate(${place.x}px, ${place.y}px) scale(${place.scale})`;
}

function fit() {
    if (!frame) return;
    const scale = fitting();
    place = {scale, x: (stage.clientWidth - view.width * scale) / 2, y: (stage.clientHeight - view.height * scale) / 2};
    move();
    drawMarks();
}

// x, y: of the stage, in CSS pixels, which stay where they are
function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    if (!frame) return;
    const scale = Math.min(Math.max(place.scale * factor, fitting() / 2), Math.max(40, 4 * fitting()));
    const ratio = scale / place.scale;
    place = {scale, x: x - (x - place.x) * ratio, y: y - (y - place.y) * ratio};
    move();
    drawMarks();
}

stage.addEventListener('wheel', (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
}, {passive: false});
$('zoom-in').addEventListener('click', () => zoom(1.5));
$('zoom-out').addEventListener('click', () => zoom(1 / 1.5));
$('zoom-fit').addEventListener('click', fit);
new ResizeObserver(() => { if (frame) fit(); }).observe(stage);

// ---------------------------------------------------------------- the pointer

function at(event) {
    const box = frame.getBoundingClientRect();
    const limit = (value, most) => Math.min(Math.max(value, 0), most);
    return [
        limit((event.clientX - box.left) / box.width, 1) * view.width,
        limit((event.clientY - box.top) / box.height, 1) * view.height,
    ];
}

const pathOf = (line) => 'M' + line.map(([x, y]) => `${x} ${y}`).join('L');
const tool = () => document.querySelector('[name=tool]:checked').value;
// a right drag means something with the brush alone
const draws = () => !press.moves && (tool() === 'brush' ? press.button !== 1 : tool() === 'lasso' && press.button === 0);

// As many places as are sent, evenly chosen, the first and the last among them, to tenths of a pixel
function thinned(line) {
    const most = Math.min(line.length, MOST_PLACES), step = (line.length - 1) / Math.max(most - 1, 1);
    return Array.from({length: most}, (_, k) => line[Math.round(k * step)].map((value) => Math.round(value * 10) / 10));
}

const dragged = (event) => press.longest > DRAG || Math.hypot(event.clientX - press.x, event.clientY - press.y) > DRAG;

stage.addEventListener('contextmenu', (event) => event.preventDefault());
stage.addEventListener('pointerdown', (event) => {
    if (!frame || event.target.closest('button')) return;
    const moves = event.button === 1 || event.shiftKey || !event.target.closest('.picture');
    event.preventDefault();
    document.activeElement?.blur();
    const from = {...place}, start = at(event);
    press = {x: event.clientX, y: event.clientY, button: event.button, moves, from, at: start, line: [start], longest: 0};
});
window.addEventListener('pointermove', (event) => {
    if (!press || !frame) return;
    if (press.moves) {
        place = {...place, x: press.from.x + event.clientX - press.x, y: press.from.y + event.clientY - press.y};
        frame.classList.add('moved');
        move();
    } else if (draws()) {
        press.longest = Math.max(press.longest, Math.hypot(event.clientX - press.x, event.clientY - press.y));
        press.line.push(at(event));
        frame.querySelector('path.band').setAttribute('d', pathOf(press.line));
    } else if (press.button === 0 && dragged(event)) {
        const [x, y] = at(event), [x0, y0] = press.at, band = frame.querySelector('rect.band');
        const edges = {x: Math.min(x, x0), y: Math.min(y, y0), width: Math.abs(x - x0), height: Math.abs(y - y0)};
        for (const [name, value] of Object.entries(edges)) band.setAttribute(name, value);
    }
});
window.addEventListener('pointerup', (event) => {
    const done = press;
    if (done && frame) {
        frame.classList.remove('moved');
        const [x, y] = done.at;
        if (draws() && dragged(event)) {
            const line = thinned([...done.line, at(event)]);
            const drawing = tool() === 'lasso' ? {do: 'lasso', line} : {do: 'scribble', line, on: done.button === 0};
            act(drawing).then(drawMarks);
        } else if (!done.moves && done.button === 0 && dragged(event)) {
            const [x1, y1] = at(event);
            act({do: 'box', x0: x, y0: y, x1, y1}).then(drawMarks);  // without the band, where there was no box
        } else if (!done.moves) {
            act({do: 'click', x, y, on: done.button === 0});
        }
    }
    press = null;
});

// ---------------------------------------------------------------- files in and out

$('files-in').addEventListener('change', () => {
    const files = [...$('files-in').files];
    $('files-in').value = '';
    if (files.length) open(files);
});
stage.addEventListener('dragover', (event) => event.preventDefault());
stage.addEventListener('drop', (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) open([...event.dataTransfer.files]);
});
$('example').addEventListener('change', () => {
    const name = $('example').value;
    $('example').value = '';
    if (name) act({do: 'example', name});
});

function forgetFiles() {
    links.forEach(URL.revokeObjectURL);
    links = [];
    $('files').replaceChildren();
}

$('save').addEventListener('click', () => inTurn(async () => {
    const names = (await (await ask('POST', 'files')).json()).files;
    quiet();
    forgetFiles();
    for (const [number, name] of names.entries()) {
        const address = URL.createObjectURL(await (await ask('GET', `files/${number}`)).blob());
        links.push(address);
        const line = element('li');
        line.append(element('a', {href: address, download: name}, name));
        $('files').append(line);
    }
}));

// ---------------------------------------------------------------- controls and keys

$('add').addEventListener('click', () => act({do: 'add'}));
$('undo').addEventListener('click', () => act({do: 'undo'}));
$('reset').addEventListener('click', () => act({do: 'reset'}));
$('name').addEventListener('change', () => act({do: 'rename', name: $('name').value}));
$('adapters').addEventListener('change', () => act({do: 'adapters', on: $('adapters').checked}));
$('slice').addEventListener('change', () => turnTo(Number($('slice').value)));
$('slice').addEventListener('input', () => { $('slice-shown').textContent = `${$('slice').value} of 0 to ${view.slices - 1}`; });
$('carry-back').addEventListener('click', () => carry(-1, Number($('carry-count').value)));
$('carry-on').addEventListener('click', () => carry(1, Number($('carry-count').value)));

function turnTo(number) {
    if (view.slices > 1 && number >= 0 && number < view.slices) act({do: 'slice', number});
}

// Slice by slice, each a request of its own: other people's clicks come in between, and Esc ends it.
async function carry(step, count) {
    if (carrying || !view.slices) return;
    carrying = true;
    for (let done = 0; carrying && done < count; done += 1) {
        if (!await act({do: 'carry', step})) break;
    }
    carrying = false;
}

const choose = (name) => { document.querySelector(`[name=tool][value=${name}]`).checked = true; };

const KEYS = {
    c: () => choose('click'),
    b: () => choose('brush'),
    l: () => choose('lasso'),
    z: () => act({do: 'undo'}),
    n: () => act({do: 'add'}),
    m: () => { $('masks').checked = !$('masks').checked; drawMarks(); },
    ArrowUp: () => turnTo(view.slice + 1),
    ArrowDown: () => turnTo(view.slice - 1),
    '[': () => carry(-1, 1),
    ']': () => carry(1, 1),
    '+': () => zoom(1.5),
    '=': () => zoom(1.5),
    '-': () => zoom(1 / 1.5),
    0: fit,
    Escape: () => { carrying = false; quiet(); },
};

window.addEventListener('keydown', (event) => {
    const typing = event.target.matches?.('input:not([type=range]):not([type=checkbox]):not([type=radio]), select');
    if (!view || event.altKey || (typing && event.key !== 'Escape')) return;
    if (typing || ((event.ctrlKey || event.metaKey) && event.key !== 'z')) return;
    const number = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : -1;
    if (number >= 0 && number < view.objects.length) act({do: 'choose', number});
    else if (KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]) {
        event.preventDefault();
        KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]();
    }
});

// ---------------------------------------------------------------- a session begins and ends

window.addEventListener('pagehide', () => {
    if (session) fetch('session', {method: 'DELETE', headers: {'X-Session': session}, keepalive: true});
});
window.addEventListener('pageshow', (event) => { if (event.persisted) location.reload(); });

inTurn(async () => {
    history.replaceState(null, '', location.pathname);  // without the token, which a cookie holds from now on
    const told = await (await ask('POST', 'sessions')).json();
    session = told.session;
    windows = told.windows;
    largest = told.largest;
    offerWindows(told.view.window.trained);
    $('example').replaceChildren(element('option', {value: ''}), ...told.examples.map((name) => element('option', {value: name}, name)));
    $('example-row').hidden = !told.examples.length;
    await show(told.view);
    document.body.dataset.ready = 'yes';
});
