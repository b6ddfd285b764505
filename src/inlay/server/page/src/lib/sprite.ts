/** The pixels of a subject: its photo, the mask over it, and the cut-out that the two make. */

import * as api from './api';
import type { Rect } from './geometry';
import { Mask } from './mask';
import { bounds, canvasOf, drawn, load, pencil, Pyramid } from './raster';

export class Sprite {
  readonly mask: Mask;
  readonly cutout: HTMLCanvasElement;
  readonly pyramid: Pyramid;
  /** What is not clear, in pixels of the photo. */
  crop: Rect;

  private constructor(readonly photo: HTMLCanvasElement) {
    this.mask = new Mask(photo.width, photo.height);
    this.cutout = canvasOf(photo.width, photo.height);
    this.pyramid = new Pyramid(this.cutout);
    this.crop = { x: 0, y: 0, width: photo.width, height: photo.height };
  }

  /** A picture that has an alpha of its own, or all of one that has none. */
  static async whole(hash: string): Promise<Sprite> {
    const sprite = new Sprite(drawn(await load(api.fileUrl(hash))));
    sprite.show(sprite.photo);
    return sprite;
  }

  /** What stands for a concept that has no picture to show. */
  static blank(): Sprite {
    const card = canvasOf(256, 256);
    const pen = pencil(card);
    pen.fillStyle = 'rgb(91 108 255 / 45%)';
    pen.fillRect(0, 0, card.width, card.height);
    const sprite = new Sprite(card);
    sprite.show(card);
    return sprite;
  }

  /** A photo with a cut-out of it: a picture of the photo's size that is clear round the subject. */
  static async cut(photo: string, cutout: string): Promise<Sprite> {
    const [whole, part] = await Promise.all([load(api.fileUrl(photo)), load(api.fileUrl(cutout))]);
    const sprite = new Sprite(drawn(whole));
    sprite.show(part);
    return sprite;
  }

  /** The same again, with a mask of its own. */
  copy(): Sprite {
    const sprite = new Sprite(this.photo);
    sprite.show(this.cutout);
    return sprite;
  }

  /** Show another cut-out of the photo, whose alpha becomes the mask. */
  show(cutout: CanvasImageSource): void {
    const pen = pencil(this.cutout);
    pen.clearRect(0, 0, this.cutout.width, this.cutout.height);
    pen.drawImage(cutout, 0, 0, this.cutout.width, this.cutout.height);
    this.mask.copyAlpha(this.cutout);
    this.measure();
  }

  /** Make a part of the cut-out anew from photo and mask, after a stroke. */
  redraw(box: Rect): void {
    const pen = pencil(this.cutout);
    const part = [box.x, box.y, box.width, box.height] as const;
    pen.save();
    pen.beginPath();
    pen.rect(...part);
    pen.clip();
    pen.clearRect(...part);
    pen.drawImage(this.photo, ...part, ...part);
    pen.globalCompositeOperation = 'destination-in';
    pen.drawImage(this.mask.canvas, ...part, ...part);
    pen.restore();
    this.pyramid.refresh();
  }

  /** Find the crop anew. */
  measure(): void {
    this.pyramid.refresh();
    this.crop = bounds(this.mask.canvas) ?? this.crop;
  }

  get empty(): boolean {
    return bounds(this.mask.canvas) === null;
  }
}
