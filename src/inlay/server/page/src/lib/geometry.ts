/** Where a subject lies, in pixels of the background. */

export interface Point {
  x: number;
  y: number;
}

export interface Rect {
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Size {
  width: number;
  height: number;
}

/** A cut-out's centre, pixels of the background per pixel of its own, and degrees anticlockwise. */
export interface Placement {
  at: Point;
  scale: number;
  rotate: number;
  flip: boolean;
}

/** The size of the box round a rectangle that is turned by so many degrees. */
function turned(size: Size, degrees: number): Size {
  const angle = (degrees * Math.PI) / 180;
  const square = degrees % 90 === 0;
  const trim = (value: number) => (square ? Math.round(Math.abs(value)) : Math.abs(value));
  const [cos, sin] = [trim(Math.cos(angle)), trim(Math.sin(angle))];
  return {
    width: size.width * cos + size.height * sin,
    height: size.width * sin + size.height * cos,
  };
}

/** The box of whole pixels that a placed cut-out of a size fills. */
export function outline(size: Size, place: Placement): Rect {
  const box = turned(size, place.rotate);
  const width = Math.max(1, Math.round(box.width * place.scale));
  const height = Math.max(1, Math.round(box.height * place.scale));
  return {
    x: Math.round(place.at.x - width / 2),
    y: Math.round(place.at.y - height / 2),
    width,
    height,
  };
}

/**
 * The placement that fills a box, keeping the aspect, as the library lays a subject into it. A box
 * that outline() has made is met exactly.
 */
export function fill(size: Size, box: Rect, rotate = 0, flip = false): Placement {
  const own = turned(size, rotate);
  const at = { x: box.x + box.width / 2, y: box.y + box.height / 2 };
  const least = Math.max((box.width - 0.5) / own.width, (box.height - 0.5) / own.height);
  const most = Math.min((box.width + 0.5) / own.width, (box.height + 0.5) / own.height);
  const fits = Math.min(box.width / own.width, box.height / own.height);
  return { at, scale: least <= most ? (least + most) / 2 : fits, rotate, flip };
}

/** In the middle, its longer side 40% of the ground's shorter one. */
export function middle(size: Size, ground: Size): Placement {
  const scale = (0.4 * Math.min(ground.width, ground.height)) / Math.max(size.width, size.height);
  return { at: { x: ground.width / 2, y: ground.height / 2 }, scale, rotate: 0, flip: false };
}

/** A point given from a cut-out's centre, in its own pixels, as a point of the background. */
export function outward(from: Point, place: Placement): Point {
  const angle = (-place.rotate * Math.PI) / 180;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  const x = from.x * place.scale * (place.flip ? -1 : 1);
  const y = from.y * place.scale;
  return { x: place.at.x + x * cos - y * sin, y: place.at.y + x * sin + y * cos };
}

/** The reverse of outward. */
export function inward(point: Point, place: Placement): Point {
  const angle = (place.rotate * Math.PI) / 180;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  const [x, y] = [point.x - place.at.x, point.y - place.at.y];
  return {
    x: ((x * cos - y * sin) / place.scale) * (place.flip ? -1 : 1),
    y: (x * sin + y * cos) / place.scale,
  };
}

/** Degrees in (-180, 180]. */
export function wrap(degrees: number): number {
  const rest = ((degrees % 360) + 360) % 360;
  return rest > 180 ? rest - 360 : rest;
}

/** The rectangle between two corners. */
export function between(a: Point, b: Point): Rect {
  return {
    x: Math.min(a.x, b.x),
    y: Math.min(a.y, b.y),
    width: Math.abs(a.x - b.x),
    height: Math.abs(a.y - b.y),
  };
}

/** The part of a box inside a ground, in whole pixels; null where there is none. */
export function clip(box: Rect, ground: Size): Rect | null {
  const x = Math.max(0, Math.floor(box.x));
  const y = Math.max(0, Math.floor(box.y));
  const width = Math.min(ground.width, Math.ceil(box.x + box.width)) - x;
  const height = Math.min(ground.height, Math.ceil(box.y + box.height)) - y;
  return width > 0 && height > 0 ? { x, y, width, height } : null;
}
