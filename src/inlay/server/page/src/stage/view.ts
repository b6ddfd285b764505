/** The view on the stage: zoom in pixels of the screen per pixel of the background, and pan. */

import type { Point, Size } from '../lib/geometry';
import { studio } from '../lib/studio.svelte';

const LEAST_ZOOM = 0.02;
const MOST_ZOOM = 16;

/** What lies over a window's rim. */
export interface Rim {
  side: number;
  top: number;
  bottom: number;
}

/** The rim of the tools, in a narrow window below the stage, and of the hints where they are shown. */
export function rimOf(narrow: boolean, hints: boolean): Rim {
  if (narrow) return { side: 12, top: 12, bottom: hints ? 132 : 64 };
  return { side: 72, top: hints ? 104 : 32, bottom: 32 };
}

/** All of the stage in a window, clear of what lies over its rim. */
export function fit(stage: Size, window: Size, { side, top, bottom }: Rim): void {
  const [wide, high] = [window.width - 2 * side, window.height - top - bottom];
  const zoom = Math.min(Math.max(40, wide) / stage.width, Math.max(40, high) / stage.height, 4);
  studio.view = {
    zoom,
    x: (window.width - stage.width * zoom) / 2,
    y: top + (high - stage.height * zoom) / 2,
  };
}

/** Zoom so that the point under `at`, on the screen, stays there. */
export function zoomTo(zoom: number, at: Point): void {
  const { view } = studio;
  const next = Math.min(MOST_ZOOM, Math.max(LEAST_ZOOM, zoom));
  const factor = next / view.zoom;
  studio.view = {
    zoom: next,
    x: at.x - (at.x - view.x) * factor,
    y: at.y - (at.y - view.y) * factor,
  };
}

export function pan(by: Point): void {
  const { view } = studio;
  studio.view = { ...view, x: view.x + by.x, y: view.y + by.y };
}

/** A point of the screen, from the stage's corner, in pixels of the background. */
export function onStage(point: Point): Point {
  const { view } = studio;
  return { x: (point.x - view.x) / view.zoom, y: (point.y - view.y) / view.zoom };
}
