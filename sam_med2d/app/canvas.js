// What a person does with the pointer on the picture -> one event "click" with pixels of the picture.
//
// Gradio runs this once, in a function that is given `element`, the canvas, and `trigger`, which calls the handler.
// Left click: on the object. Right click: off it. Drag with the left button: a box, shown while it is drawn.

const DRAG = 4; // CSS pixels; a shorter drag is a click
let start = null;

const frame = () => element.querySelector('.picture');

const at = (event) => {
    const box = frame().getBoundingClientRect();
    const limit = (value, most) => Math.min(Math.max(value, 0), most);
    return [
        limit((event.clientX - box.left) / box.width, 1) * frame().dataset.width,
        limit((event.clientY - box.top) / box.height, 1) * frame().dataset.height,
    ];
};

const dragged = (event) => Math.hypot(event.clientX - start.x, event.clientY - start.y) > DRAG;

element.addEventListener('contextmenu', (event) => event.preventDefault());

element.addEventListener('pointerdown', (event) => {
    if (!frame() || !event.target.closest('.picture') || event.button === 1) return;
    event.preventDefault();
    start = {x: event.clientX, y: event.clientY, at: at(event), button: event.button};
});

window.addEventListener('pointermove', (event) => {
    if (!start || start.button !== 0 || !frame() || !dragged(event)) return;
    const [x, y] = at(event), [x0, y0] = start.at, band = element.querySelector('.band');
    const place = {x: Math.min(x, x0), y: Math.min(y, y0), width: Math.abs(x - x0), height: Math.abs(y - y0)};
    for (const [name, value] of Object.entries(place)) band.setAttribute(name, value);
});

window.addEventListener('pointerup', (event) => {
    if (start && frame()) {
        const box = start.button === 0 && dragged(event);
        trigger('click', {start: start.at, end: box ? at(event) : null, foreground: start.button === 0});
    }
    start = null;
});
