/** The quick preview: asked for when the stage has come to rest, dropped when it moves again. */

import * as api from '../lib/api';
import { form } from '../lib/form.svelte';
import type { Size } from '../lib/geometry';
import { previewOf } from '../lib/request';
import { studio } from '../lib/studio.svelte';

const PAUSE_MS = 60;
const SIDES = [512, 768, 1024, 1536];
/** Enlarged further than this it would look soft, and what it is made of is shown instead. */
const MOST_ENLARGED = 1.6;

export class Glance {
  image: ImageBitmap | null = $state.raw(null);
  private timer: ReturnType<typeof setTimeout> | undefined;
  /** A drag's end is an end; a key that is held down or a number that is typed may go on. */
  private moving = false;
  private request: AbortController | null = null;

  /** To be called in an effect: whatever it reads asks for another preview when it changes. */
  watch(window: Size): void {
    const { ground, layers, live, verb, livePreview } = studio;
    void form.shadowKind;
    const pause = this.moving ? 0 : PAUSE_MS;
    this.moving = live !== null;
    clearTimeout(this.timer);
    this.request?.abort();
    if (!ground || !layers.length || verb !== 'compose' || !livePreview || live) {
      this.image = null;
      return;
    }
    const side = Math.max(ground.width, ground.height);
    const wanted = side * studio.view.zoom * devicePixelRatio;
    const size = SIDES.find((each) => each >= Math.min(wanted, window.width * devicePixelRatio)) ?? 1536;
    if (wanted > MOST_ENLARGED * Math.min(size, side)) {
      this.image = null;
      return;
    }
    this.timer = setTimeout(() => void this.ask(Math.min(size, side)), pause);
  }

  private async ask(size: number): Promise<void> {
    const asked = (this.request = new AbortController());
    try {
      const request = await previewOf();
      if (!request || asked.signal.aborted) return;
      const image = await createImageBitmap(await api.preview(request, size, asked.signal));
      if (!asked.signal.aborted) this.image = image;
    } catch {
      // A preview that does not come is no reason to stop: the stage shows the subjects as they are.
      if (!asked.signal.aborted) this.image = null;
    }
  }
}
