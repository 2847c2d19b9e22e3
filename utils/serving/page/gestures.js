// Pointer, wheel and keys on the planes.

const WHEEL_STEP = 40;
const LINE = 40;
const PIXELS_OF_WINDOW = 400;
const SHIFT_STEP = 10;

let spaceHeld = false;
addEventListener('keydown', (event) => {
  if (event.key === ' ' && (event.target === document.body || event.target.tagName === 'CANVAS')) {
    spaceHeld = true;
    event.preventDefault();
  }
});
addEventListener('keyup', (event) => {
  if (event.key === ' ') spaceHeld = false;
});

export function listen(plane, tools, display) {
  const { canvas } = plane;
  const pointers = new Map();
  let drag = null;
  let wheel = 0;

  const start = (event) => {
    pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    canvas.setPointerCapture(event.pointerId);
    if (pointers.size === 2) {
      tools.cancel();
      drag = 'pinch';
    } else if (event.button === 1 || (event.button === 0 && spaceHeld)) {
      event.preventDefault();
      drag = 'pan';
    } else if (event.button === 2) {
      drag = 'window';
    } else if (event.button === 0) {
      drag = 'tool';
      tools.press(plane, event.offsetX, event.offsetY);
    }
  };

  const pinch = (event, before) => {
    const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
    const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
    const now = [event.offsetX, event.offsetY];
    plane.zoomAt((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, distance(now) / Math.max(1, distance(before)));
    plane.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  };

  const move = (event) => {
    const { offsetX: x, offsetY: y } = event;
    const before = pointers.get(event.pointerId);
    if (!before) {
      const edge = tools.edgeAt(plane, x, y);
      canvas.dataset.cursor = edge ? edge.direction : tools.name;
      display.hover(plane.holds(x, y) ? plane.voxelAt(x, y) : null);
      return;
    }
    pointers.set(event.pointerId, [x, y]);
    const [dx, dy] = [x - before[0], y - before[1]];
    if (drag === 'pinch') pinch(event, before);
    else if (drag === 'pan') plane.pan(dx, dy);
    else if (drag === 'window') display.moveWindow(dy / PIXELS_OF_WINDOW, dx / PIXELS_OF_WINDOW);
    else if (drag === 'tool') tools.move(plane, x, y);
    display.hover(plane.voxelAt(x, y));
    display.redraw();
  };

  const end = (event) => {
    if (!pointers.delete(event.pointerId)) return;
    if (drag === 'tool') tools.release();
    if (!pointers.size) drag = null;
  };

  canvas.addEventListener('pointerdown', start);
  canvas.addEventListener('pointermove', move);
  canvas.addEventListener('pointerup', end);
  canvas.addEventListener('pointercancel', (event) => {
    tools.cancel();
    drag = null;
    end(event);
  });
  canvas.addEventListener('pointerleave', () => display.hover(null));
  canvas.addEventListener('contextmenu', (event) => event.preventDefault());
  canvas.addEventListener('dblclick', () => {
    // With the other tools two quick clicks are two prompts.
    if (tools.name === 'navigate') display.resetViews(plane);
  });

  canvas.addEventListener('wheel', (event) => {
    event.preventDefault();
    const delta = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? 1 : LINE);
    // Browsers report a pinch on a touchpad as a wheel with ctrl.
    if (event.ctrlKey) {
      plane.zoomAt(event.offsetX, event.offsetY, Math.exp(-Math.max(-50, Math.min(50, delta)) / 200));
      display.redraw();
      return;
    }
    // A notch of a mouse wheel is one slice; small moves of a touchpad add up to one.
    wheel = Math.abs(delta) >= WHEEL_STEP ? delta : wheel + delta;
    if (Math.abs(wheel) < WHEEL_STEP) return;
    display.scroll(plane, -Math.sign(wheel));
    wheel = 0;
    if (drag === null && plane.holds(event.offsetX, event.offsetY)) display.hover(plane.voxelAt(event.offsetX, event.offsetY));
  }, { passive: false });

  canvas.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? SHIFT_STEP : 1;
    const { normal, row, column } = plane.axes;
    const right = plane.mirrored ? -step : step;
    const down = plane.upside ? -step : step;
    const moves = {
      ArrowRight: [column, right],
      ArrowLeft: [column, -right],
      ArrowDown: [row, down],
      ArrowUp: [row, -down],
      PageUp: [normal, step],
      PageDown: [normal, -step],
    };
    if (moves[event.key]) display.moveBy(...moves[event.key]);
    else if (event.key === 'Enter') tools.enter(plane);
    else return;
    event.preventDefault();
  });
}
