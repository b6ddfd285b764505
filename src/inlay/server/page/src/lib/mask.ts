/** A mask that is painted: an offscreen canvas whose alpha says how much of each pixel counts. */

import type { Point, Rect } from './geometry';
import { clip } from './geometry';
import { blobOf, canvasOf, drawn, load, pencil } from './raster';

/** What a stroke changed, as it was before and is after. */
export interface Patch {
  box: Rect;
  before: ImageData;
  after: ImageData;
}

export class Mask {
  readonly canvas: HTMLCanvasElement;
  private last: Point | null = null;
  private dirty: Rect | null = null;
  private backup: HTMLCanvasElement | null = null;

  constructor(width: number, height: number) {
    this.canvas = canvasOf(width, height);
    // Strokes are read back for undo and for the bounds.
    this.canvas.getContext('2d', { willReadFrequently: true });
  }

  get width(): number {
    return this.canvas.width;
  }

  get height(): number {
    return this.canvas.height;
  }

  private get pen(): CanvasRenderingContext2D {
    return pencil(this.canvas);
  }

  /** From a picture that is white where something is, or clear where nothing is. */
  async read(url: string): Promise<void> {
    const grey = drawn(await load(url), this);
    const levels = pencil(grey).getImageData(0, 0, this.width, this.height);
    const { data } = levels;
    for (let i = 0; i < data.length; i += 4) {
      const level = Math.max(data[i]!, data[i + 1]!, data[i + 2]!);
      data[i + 3] = (level * data[i + 3]!) / 255;
      data[i] = data[i + 1] = data[i + 2] = 255;
    }
    this.pen.putImageData(levels, 0, 0);
  }

  /** The alpha of a picture. */
  copyAlpha(source: CanvasImageSource): void {
    const pen = this.pen;
    pen.clearRect(0, 0, this.width, this.height);
    pen.drawImage(source, 0, 0, this.width, this.height);
    pen.globalCompositeOperation = 'source-in';
    pen.fillStyle = '#fff';
    pen.fillRect(0, 0, this.width, this.height);
    pen.globalCompositeOperation = 'source-over';
  }

  /** White on black, as files of masks are. */
  async blob(): Promise<Blob> {
    const whole = canvasOf(this.width, this.height);
    const pen = pencil(whole);
    pen.fillStyle = '#000';
    pen.fillRect(0, 0, whole.width, whole.height);
    pen.drawImage(this.canvas, 0, 0);
    return blobOf(whole);
  }

  begin(): void {
    this.last = this.dirty = null;
    this.backup = drawn(this.canvas);
  }

  /** Paint from the last point to this one; the box that changed. */
  stroke(to: Point, diameter: number, erase: boolean): Rect | null {
    const from = this.last ?? to;
    this.last = to;
    const pen = this.pen;
    pen.globalCompositeOperation = erase ? 'destination-out' : 'source-over';
    pen.strokeStyle = '#fff';
    pen.lineWidth = diameter;
    pen.lineCap = 'round';
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x, to.y + 0.01);
    pen.stroke();
    pen.globalCompositeOperation = 'source-over';
    const reach = diameter / 2 + 2;
    const box = clip(
      {
        x: Math.min(from.x, to.x) - reach,
        y: Math.min(from.y, to.y) - reach,
        width: Math.abs(from.x - to.x) + 2 * reach,
        height: Math.abs(from.y - to.y) + 2 * reach,
      },
      this,
    );
    if (box) this.dirty = this.dirty ? hull(this.dirty, box) : box;
    return box;
  }

  /** What the stroke since begin() changed; null where it missed the picture. */
  end(): Patch | null {
    const [box, backup] = [this.dirty, this.backup];
    this.backup = null;
    return box && backup ? this.patch(box, backup) : null;
  }

  /** Anything else that changes all of the mask, as a patch. */
  async replace(change: () => void | Promise<void>): Promise<Patch> {
    const backup = drawn(this.canvas);
    await change();
    return this.patch({ x: 0, y: 0, width: this.width, height: this.height }, backup);
  }

  clear(): void {
    this.pen.clearRect(0, 0, this.width, this.height);
  }

  put(data: ImageData, box: Rect): void {
    this.pen.putImageData(data, box.x, box.y);
  }

  private patch(box: Rect, backup: HTMLCanvasElement): Patch {
    const part = [box.x, box.y, box.width, box.height] as const;
    return {
      box,
      before: pencil(backup).getImageData(...part),
      after: this.pen.getImageData(...part),
    };
  }
}

function hull(a: Rect, b: Rect): Rect {
  const x = Math.min(a.x, b.x);
  const y = Math.min(a.y, b.y);
  return {
    x,
    y,
    width: Math.max(a.x + a.width, b.x + b.width) - x,
    height: Math.max(a.y + a.height, b.y + b.height) - y,
  };
}
