/** The server's sentences as the page says them. */

import { studio } from './studio.svelte';

/** A whole sentence, in which files go by the names that they have on the stage. */
export function sentence(text: string): string {
  const named = text.replace(/\b[0-9a-f]{64}(\.\w+)?/g, (file) => {
    const layer = studio.layers.find((each) => each.picture === file || each.mask === file);
    return layer?.name ?? (studio.ground?.file === file ? studio.ground.name : file.slice(0, 8));
  });
  return named.charAt(0).toUpperCase() + named.slice(1) + (/[.!?]$/.test(named) ? '' : '.');
}
