/** What is on the stage, and how it is to be made: the one state that all parts of the page share. */

import { wrap, type Placement, type Point, type Rect, type Size } from './geometry';
import type { Mask } from './mask';
import type { Pyramid } from './raster';
import type { Sprite } from './sprite';
import { history } from './undo.svelte';

export type Verb = 'compose' | 'harmonize' | 'remove' | 'scene' | 'learn';
export type Tool = 'move' | 'hand' | 'brush' | 'eraser' | 'box' | 'point';

/** The picture that everything lies on, and whose pixels all geometry is in. */
export interface Ground extends Size {
  file: string;
  name: string;
  raster: Pyramid;
}

/** A subject on the stage. `place` is that of the middle of `crop`. */
export interface Layer {
  id: number;
  name: string;
  kind: 'picture' | 'concept';
  picture: string;
  /** The stored mask; null where the picture's own alpha says what counts. */
  mask: string | null;
  /** Of the sprite's pixels: what is not clear, and how many of the picture's one of them is. */
  crop: Rect;
  unit: number;
  place: Placement;
  locked: boolean;
  view: number | null;
  /** Counts changes of the sprite's pixels. */
  stamp: number;
}

export interface View {
  zoom: number;
  x: number;
  y: number;
}

class Studio {
  verb: Verb = $state('compose');
  ground: Ground | null = $state.raw(null);
  /** Of a scene, which has no background. */
  size: Size = $state.raw({ width: 768, height: 512 });
  layers: Layer[] = $state.raw([]);
  selected: number | null = $state(null);
  tool: Tool = $state('move');
  /** Of the brush, in pixels of the screen. */
  brush = $state(36);
  /** What harmonize and remove work on, over the ground; its pixels count their changes. */
  mask: Mask | null = $state.raw(null);
  maskStamp = $state(0);
  maskEmpty = $state(true);
  view: View = $state.raw({ zoom: 1, x: 0, y: 0 });
  livePreview = $state(true);
  /** Where a subject is while it is moved, before that is a step of undo. */
  live: { id: number; place: Placement } | null = $state.raw(null);
  sprites = new Map<number, Sprite>();
  private next = 1;

  /** What the stage shows is so large. */
  get stage(): Size {
    return this.verb === 'scene' ? this.size : (this.ground ?? { width: 960, height: 640 });
  }

  get placing(): boolean {
    return this.verb === 'compose' || this.verb === 'scene';
  }

  get masking(): boolean {
    return this.verb === 'remove' || this.verb === 'harmonize';
  }

  get layer(): Layer | null {
    return this.layers.find((layer) => layer.id === this.selected) ?? null;
  }

  newId(): number {
    return this.next++;
  }

  /** Whether brush, box and point have something to work on. */
  get paintable(): boolean {
    if (this.masking) return this.ground !== null;
    return this.placing && this.layer?.kind === 'picture';
  }

  /** Change the list of subjects so that it can be undone; equal names in a row are one step. */
  arrange(layers: Layer[], name = ''): void {
    const before = this.layers;
    if (layers === before) return;
    this.layers = layers;
    history.push(
      () => this.restore(before),
      () => this.restore(layers),
      { name },
    );
  }

  /** Bring back a list of subjects; the pixels they show are as the undone strokes left them. */
  private restore(layers: Layer[]): void {
    const now = new Map(this.layers.map((layer) => [layer.id, layer]));
    this.layers = layers.map((layer) => {
      const same = now.get(layer.id);
      return same && same.stamp !== layer.stamp ? { ...layer, stamp: same.stamp + 1 } : layer;
    });
    if (!this.layer) this.selected = this.layers.at(-1)?.id ?? null;
  }

  /** Change one subject, without a step of undo. */
  touch(id: number, change: Partial<Layer>): void {
    this.layers = this.layers.map((layer) => (layer.id === id ? { ...layer, ...change } : layer));
  }

  /** Subjects keep their share of the stage when it becomes another size. */
  rescale(from: Size, to: Size): void {
    const factor = Math.min(to.width / from.width, to.height / from.height);
    const moved = ({ place }: Layer): Placement => ({
      ...place,
      at: { x: (place.at.x * to.width) / from.width, y: (place.at.y * to.height) / from.height },
      scale: place.scale * factor,
    });
    this.layers = this.layers.map((layer) => ({ ...layer, place: moved(layer) }));
  }

  add(layer: Layer, sprite: Sprite): void {
    this.sprites.set(layer.id, sprite);
    this.arrange([...this.layers, layer]);
    this.selected = layer.id;
    this.tool = 'move';
  }

  /** Let go of the pixels of subjects that no undo can bring back. */
  forget(): void {
    history.clear();
    for (const id of this.sprites.keys())
      if (!this.layers.some((layer) => layer.id === id)) this.sprites.delete(id);
  }

  remove(id: number): void {
    this.arrange(this.layers.filter((layer) => layer.id !== id));
    if (this.selected === id) this.selected = this.layers.at(-1)?.id ?? null;
  }

  duplicate(id: number): void {
    const layer = this.layers.find((each) => each.id === id);
    const sprite = this.sprites.get(id);
    if (!layer || !sprite) return;
    const off = Math.round(0.04 * Math.min(this.stage.width, this.stage.height));
    const at = { x: layer.place.at.x + off, y: layer.place.at.y + off };
    const copy = { ...layer, id: this.newId(), place: { ...layer.place, at } };
    this.add(copy, sprite.copy());
  }

  /** Move a subject one up (1) or down (-1) in the order in which they are laid. */
  reorder(id: number, by: 1 | -1): void {
    const from = this.layers.findIndex((layer) => layer.id === id);
    const to = from + by;
    if (from < 0 || to < 0 || to >= this.layers.length) return;
    const layers = [...this.layers];
    [layers[from], layers[to]] = [layers[to]!, layers[from]!];
    this.arrange(layers);
  }

  place(id: number, change: Partial<Placement>, name = ''): void {
    const layer = this.layers.find((each) => each.id === id);
    if (!layer || layer.locked) return;
    const place = { ...layer.place, ...change };
    if (!(place.scale > 0) || !Number.isFinite(place.scale)) return;
    this.arrange(
      this.layers.map((each) => (each.id === id ? { ...each, place } : each)),
      name && `${name}-${id}`,
    );
  }

  nudge(by: Point): void {
    const layer = this.layer;
    if (!layer) return;
    const at = { x: layer.place.at.x + by.x, y: layer.place.at.y + by.y };
    this.place(layer.id, { at }, 'nudge');
  }

  scaleBy(factor: number): void {
    const layer = this.layer;
    if (layer) this.place(layer.id, { scale: layer.place.scale * factor }, 'scale');
  }

  rotateBy(degrees: number): void {
    const layer = this.layer;
    if (!layer) return;
    const rotate = Math.round(wrap(layer.place.rotate + degrees) * 100) / 100;
    this.place(layer.id, { rotate }, 'rotate');
  }

  flip(): void {
    const layer = this.layer;
    if (layer) this.place(layer.id, { flip: !layer.place.flip });
  }
}

export const studio = new Studio();
