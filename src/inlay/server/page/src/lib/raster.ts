/** Pictures as canvases: loading, levels for fast drawing, and what of one is not clear. */

import type { Rect, Size } from './geometry';

export function canvasOf(width: number, height: number): HTMLCanvasElement {
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  return canvas;
}

export function pencil(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  return canvas.getContext('2d')!;
}

/** A picture from an address of this server, or of a blob, decoded. */
export async function load(url: string): Promise<HTMLImageElement> {
  const image = new Image();
  image.decoding = 'async';
  image.src = url;
  await image.decode();
  return image;
}

export function drawn(source: CanvasImageSource & Size, size: Size = source): HTMLCanvasElement {
  const canvas = canvasOf(size.width, size.height);
  pencil(canvas).drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

export function blobOf(canvas: HTMLCanvasElement): Promise<Blob> {
  return new Promise((done, fail) =>
    canvas.toBlob((blob) => (blob ? done(blob) : fail(new Error('no blob'))), 'image/png'),
  );
}

/** A picture at half its size, a quarter and so on: each is made when it is first needed. */
export class Pyramid {
  private levels: (CanvasImageSource & Size)[];

  constructor(base: CanvasImageSource & Size) {
    this.levels = [base];
  }

  get base(): CanvasImageSource & Size {
    return this.levels[0]!;
  }

  /** The smallest level that is no coarser than `scale` screen pixels per pixel of the base. */
  at(scale: number): CanvasImageSource & Size {
    let level = 0;
    while (scale <= 0.5 ** (level + 1) && Math.min(this.base.width, this.base.height) >> level > 64)
      level += 1;
    while (this.levels.length <= level) {
      const last = this.levels.at(-1)!;
      this.levels.push(drawn(last, { width: last.width / 2, height: last.height / 2 }));
    }
    return this.levels[level]!;
  }

  /** Forget what was made from the base, whose pixels have changed. */
  refresh(): void {
    this.levels.length = 1;
  }
}

/** The box of what has at least a twentieth of a canvas's largest alpha; null where all is clear. */
export function bounds(canvas: HTMLCanvasElement): Rect | null {
  const { width, height } = canvas;
  const data = pencil(canvas).getImageData(0, 0, width, height).data;
  let most = 0;
  for (let i = 3; i < data.length; i += 4) if (data[i]! > most) most = data[i]!;
  if (!most) return null;
  const least = Math.max(1, most * 0.05);
  let [left, top, right, bottom] = [width, -1, -1, -1];
  for (let y = 0; y < height; y += 1) {
    const row = y * width * 4 + 3;
    let first = 0;
    while (first < width && data[row + first * 4]! < least) first += 1;
    if (first === width) continue;
    let last = width - 1;
    while (data[row + last * 4]! < least) last -= 1;
    if (top < 0) top = y;
    bottom = y;
    if (first < left) left = first;
    if (last > right) right = last;
  }
  return { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
}
