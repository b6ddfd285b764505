/** From the stage to a request, and back. */

import * as api from './api';
import { form } from './form.svelte';
import { fill, middle, outline, type Placement, type Rect, type Size } from './geometry';
import { addLayer, cutAgain, groundMaskChanged, groundOf } from './pictures';
import { Sprite } from './sprite';
import { studio, type Layer, type Verb } from './studio.svelte';

type Data = Record<string, any>;

/** What is still missing before it can be made; empty where nothing is. */
export function missing(): string {
  const { verb, ground, layers } = studio;
  if (verb === 'learn') return '';
  if (verb !== 'scene' && !ground) return 'Choose a background first';
  if (studio.placing && !layers.length) return 'Add a subject first';
  if (verb === 'remove' && studio.maskEmpty) return 'Mark what is to go';
  if (verb === 'scene' && !form.prompt.trim()) return 'Say what the scene shows';
  return '';
}

/** A subject as a request names it; its box is the one that is drawn, in whole pixels. */
function subjectData(layer: Layer): Data {
  const box = outline(layer.crop, layer.place);
  const data: Data = { picture: layer.picture, box: [box.x, box.y, box.width, box.height] };
  if (layer.mask) data.mask = layer.mask;
  if (layer.place.rotate) data.rotate = layer.place.rotate;
  if (layer.place.flip) data.flip = true;
  if (layer.view) data.view = layer.view;
  return data;
}

/** Store the masks that were painted since they were last stored. */
async function storeMasks(): Promise<void> {
  for (const layer of studio.layers) {
    const sprite = studio.sprites.get(layer.id);
    if (layer.mask !== '' || !sprite) continue;
    if (sprite.empty) throw new api.Refusal(`Nothing is left of ${layer.name}; paint some of it.`);
    const stored = await api.upload(await sprite.mask.blob(), 'mask.png');
    studio.touch(layer.id, { mask: stored.file });
  }
}

/** The request for what is on the stage. */
export async function requestOf(): Promise<Data> {
  const { verb, ground } = studio;
  const shared: Data = { ...form.carried, verb, method: form.choice(), seed: form.seed, num_images: form.variants };
  if (form.model && form.models.length > 1) shared.model = { name: form.model };
  if (studio.masking) {
    const data: Data = { ...shared, picture: ground!.file };
    if (!studio.maskEmpty)
      data.mask = (await api.upload(await studio.mask!.blob(), 'mask.png')).file;
    return data;
  }
  await storeMasks();
  const data: Data = { ...shared, subjects: studio.layers.map(subjectData) };
  if (verb === 'scene') return { ...data, size: [studio.size.width, studio.size.height] };
  data.background = ground!.file;
  if (form.together && studio.layers.length > 1) data.together = true;
  if (Object.keys(form.shadow).length) data.shadow = { ...form.shadow };
  return data;
}

/** What the quick preview is made of; null where there is nothing to show. */
export async function previewOf(): Promise<Data | null> {
  const { ground, layers } = studio;
  const seen = layers.filter((layer) => inside(outline(layer.crop, layer.place)));
  if (studio.verb !== 'compose' || !ground || !seen.length) return null;
  await storeMasks();
  const kind = form.shadowKind === 'none' ? { shadow: 'none' } : {};
  const now = studio.layers.filter((layer) => seen.some((each) => each.id === layer.id));
  return { verb: 'compose', background: ground.file, subjects: now.map(subjectData), ...kind };
}

function inside(box: Rect): boolean {
  const { width, height } = studio.stage;
  return box.x < width && box.y < height && box.x + box.width > 0 && box.y + box.height > 0;
}

/** Put a request back on the stage, as it was when it was made. */
export async function restore(request: Data): Promise<void> {
  const verb = request.verb as Verb;
  const ground = request.background && verb === 'compose' ? request.background : request.picture;
  if (verb !== 'scene' && !ground)
    throw new api.Refusal('The background of this picture is not on the server any more.');
  studio.layers = [];
  studio.selected = null;
  studio.verb = verb;
  form.read(request);
  if (verb === 'scene') studio.size = { width: request.size[0], height: request.size[1] };
  else await groundOf(await api.fileInfo(ground), 'background');
  if (studio.masking && request.mask && studio.mask) {
    await studio.mask.read(api.fileUrl(request.mask));
    groundMaskChanged();
  } else if (studio.masking && request.box) {
    await cutAgain({ box: rectOf(request.box) });
  } else if (studio.masking && request.point) {
    await cutAgain({ point: { x: request.point[0], y: request.point[1] } });
  }
  for (const [index, subject] of (request.subjects ?? []).entries())
    await restoreSubject(subject, `subject ${index + 1}`);
  studio.forget();
}

async function restoreSubject(subject: Data, name: string): Promise<void> {
  if (!subject.picture) throw new api.Refusal(`The picture of ${name} is not on the server any more.`);
  const stored = await api.fileInfo(subject.picture);
  let sprite: Sprite;
  let mask: string | null = null;
  if (stored.kind === 'concept') {
    sprite = await Sprite.whole(stored.file).catch(() => Sprite.blank());
  } else if (stored.has_alpha && !subject.mask) {
    sprite = await Sprite.whole(stored.file);
  } else {
    const { mask: known, cut_box: box, cut_points: points } = subject;
    const how = known ? { mask: known } : { ...(box && { box }), ...(points && { points }) };
    const cut = await api.cut({ picture: stored.file, ...how });
    sprite = await Sprite.cut(stored.file, cut.file);
    mask = known ?? cut.mask;
  }
  const unit = (stored.width ?? sprite.photo.width) / sprite.photo.width;
  const place = placeOf(subject, sprite.crop, unit);
  addLayer(stored, name, sprite, mask, place, { view: subject.view ?? null });
}

function rectOf(box: number[] | Rect): Rect {
  if (!Array.isArray(box)) return box;
  const [x, y, width, height] = box as [number, number, number, number];
  return { x, y, width, height };
}

function placeOf(subject: Data, size: Size, unit: number): Placement {
  const { box, at, scale, rotate = 0, flip = false } = subject;
  if (box) {
    return fill(size, rectOf(box), rotate, flip);
  }
  const place = { ...middle(size, studio.stage), rotate, flip };
  if (at) place.at = { x: at[0], y: at[1] };
  if (scale) place.scale = scale * unit;
  return place;
}
