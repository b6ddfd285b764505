/** Files onto the stage: backgrounds, subjects and their masks. */

import * as api from './api';
import { fill, middle, outward, type Placement, type Rect } from './geometry';
import { Mask } from './mask';
import { messages } from './messages.svelte';
import { bounds, drawn, load, Pyramid } from './raster';
import { Sprite } from './sprite';
import { studio, type Layer } from './studio.svelte';
import { history } from './undo.svelte';
import { sentence } from './words';

const plain = (name: string) => name.replace(/\.[a-z0-9]+$/i, '');

/** Whether a file may be a picture or a concept; what it really is, the server finds out. */
export const usable = (file: File) =>
  file.type.startsWith('image/') || /\.(safetensors|heic|heif|avif|tiff?|bmp)$/i.test(file.name);

export async function setGround(file: Blob, name = 'background'): Promise<void> {
  await messages.during('Reading the background', async () => {
    await groundOf(await api.upload(file, name), plain(name));
  });
}

/** Make a stored picture the background. */
export async function groundOf(stored: api.StoredFile, name: string): Promise<void> {
  if (stored.kind !== 'picture') throw new api.Refusal('A background is a picture; this is none.');
  const image = await load(api.fileUrl(stored.file));
  const size = { width: stored.width!, height: stored.height! };
  if (studio.ground) studio.rescale(studio.ground, size);
  studio.forget();
  studio.ground = { file: stored.file, name, raster: new Pyramid(drawn(image)), ...size };
  studio.mask = new Mask(image.naturalWidth, image.naturalHeight);
  studio.maskEmpty = true;
  studio.maskStamp += 1;
}

export async function addSubject(file: Blob, name = 'subject', box?: Rect): Promise<void> {
  const stored = await messages.during('Reading the subject', () => api.upload(file, name));
  if (stored) await subjectOf(stored, plain(name), box);
}

/** Put a stored picture or concept on the stage, cut out. */
export async function subjectOf(stored: api.StoredFile, name: string, box?: Rect): Promise<void> {
  await messages.during('Cutting the subject out', async () => {
    let sprite: Sprite;
    let mask: string | null = null;
    if (stored.kind === 'concept') {
      sprite = await Sprite.whole(stored.file).catch(() => Sprite.blank());
    } else if (stored.has_alpha && (await clear(stored.file))) {
      sprite = await Sprite.whole(stored.file);
    } else {
      const cut = await api.cut({ picture: stored.file });
      sprite = await Sprite.cut(stored.file, cut.file);
      mask = cut.mask;
      cut.notes?.forEach((note) => messages.say(sentence(note)));
    }
    const place = box ? fill(sprite.crop, box) : middle(sprite.crop, studio.stage);
    addLayer(stored, name, sprite, mask, place);
  });
}

export function addLayer(
  stored: api.StoredFile,
  name: string,
  sprite: Sprite,
  mask: string | null,
  place: Placement,
  more: Partial<Layer> = {},
): void {
  const layer: Layer = {
    id: studio.newId(),
    name: stored.class_name ?? name,
    kind: stored.kind,
    picture: stored.file,
    mask,
    crop: sprite.crop,
    unit: (stored.width ?? sprite.photo.width) / sprite.photo.width,
    place,
    locked: false,
    view: null,
    stamp: 0,
    ...more,
  };
  if (!studio.placing) studio.verb = 'compose';
  studio.add(layer, sprite);
}

/** Whether a picture with an alpha channel is clear anywhere. */
async function clear(file: string): Promise<boolean> {
  const small = new Mask(64, 64);
  const image = await load(api.fileUrl(file, 256));
  small.copyAlpha(image);
  const data = small.canvas.getContext('2d')!.getImageData(0, 0, 64, 64).data;
  return data.some((value, index) => index % 4 === 3 && value < 250);
}

/** Cut the selected subject, or mark what is to go, by a box or a point in pixels of the ground. */
export async function cutAgain(how: { box?: Rect; point?: { x: number; y: number } }): Promise<void> {
  if (studio.masking) return markThing(how);
  const layer = studio.layer;
  const sprite = layer && studio.sprites.get(layer.id);
  if (!layer || !sprite) return;
  await messages.during('Cutting again', async () => {
    const unit = layer.unit;
    const body: Record<string, unknown> = { picture: layer.picture };
    if (how.box) body.box = numbers(how.box).map((value) => Math.round(value * unit));
    if (how.point) body.points = [[how.point.x * unit, how.point.y * unit]];
    const cut = await api.cut(body);
    const image = await load(api.fileUrl(cut.file));
    const patch = await sprite.mask.replace(() => sprite.show(image));
    cut.notes?.forEach((note) => messages.say(sentence(note)));
    spriteChanged(layer.id, cut.mask);
    keepPatch(layer.id, patch);
  });
}

async function markThing(how: { box?: Rect; point?: { x: number; y: number } }): Promise<void> {
  const { ground, mask } = studio;
  if (!ground || !mask) return;
  await messages.during('Finding the thing', async () => {
    const body: Record<string, unknown> = { picture: ground.file };
    if (how.box) body.box = numbers(how.box).map(Math.round);
    if (how.point) body.points = [[how.point.x, how.point.y]];
    const cut = await api.cut(body);
    const found = new Mask(mask.width, mask.height);
    await found.read(api.fileUrl(cut.mask));
    const patch = await mask.replace(() => {
      mask.canvas.getContext('2d')!.drawImage(found.canvas, 0, 0);
    });
    groundMaskChanged();
    keepPatch(null, patch);
  });
}

/** Take a mask from a file: of the selected subject, or of what is to change in the ground. */
export async function uploadMask(file: Blob): Promise<void> {
  const layer = studio.masking ? null : studio.layer;
  const sprite = layer && studio.sprites.get(layer.id);
  const mask = layer ? sprite?.mask : studio.mask;
  if (!mask) return;
  await messages.during('Reading the mask', async () => {
    const stored = await api.upload(file, 'mask.png');
    const [a, b] = [stored.width! / stored.height!, mask.width / mask.height];
    if (Math.abs(a / b - 1) > 0.02)
      throw new api.Refusal('The mask has another shape than its picture; expected the same aspect.');
    const patch = await mask.replace(async () => {
      mask.clear();
      await mask.read(api.fileUrl(stored.file));
    });
    if (layer && sprite) {
      sprite.redraw({ x: 0, y: 0, width: mask.width, height: mask.height });
      sprite.measure();
      spriteChanged(layer.id, stored.file);
    } else {
      groundMaskChanged();
    }
    keepPatch(layer ? layer.id : null, patch);
  });
}

export const currentMask = (): Mask | null =>
  studio.masking
    ? studio.mask
    : ((studio.layer && studio.sprites.get(studio.layer.id)?.mask) ?? null);

/** A step of undo for a change of a mask: that of a subject, or null for the ground's. */
export function keepPatch(id: number | null, patch: import('./mask').Patch): void {
  const mask = id === null ? studio.mask : studio.sprites.get(id)?.mask;
  if (!mask) return;
  const put = (data: ImageData) => {
    mask.put(data, patch.box);
    if (id === null) return groundMaskChanged();
    const sprite = studio.sprites.get(id)!;
    sprite.redraw(patch.box);
    sprite.measure();
    spriteChanged(id, '');
  };
  history.push(
    () => put(patch.before),
    () => put(patch.after),
    { bytes: patch.before.data.length * 2 },
  );
}

export function groundMaskChanged(): void {
  studio.maskEmpty = !studio.mask || bounds(studio.mask.canvas) === null;
  studio.maskStamp += 1;
}

/**
 * A subject's pixels changed: its crop may have too, and what is still there stays where it was.
 * mask is the stored one; empty where it is to be stored before it is next asked for.
 */
export function spriteChanged(id: number, mask: string): void {
  const sprite = studio.sprites.get(id);
  if (!sprite) return;
  studio.layers = studio.layers.map((layer) => {
    if (layer.id !== id) return layer;
    const [was, now] = [layer.crop, sprite.crop];
    const by = {
      x: now.x + now.width / 2 - was.x - was.width / 2,
      y: now.y + now.height / 2 - was.y - was.height / 2,
    };
    const place = { ...layer.place, at: outward(by, layer.place) };
    return { ...layer, mask, crop: now, place, stamp: layer.stamp + 1 };
  });
}

const numbers = (box: Rect) => [box.x, box.y, box.width, box.height];
