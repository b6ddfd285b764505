/** The view on the stage: zoom in pixels of the screen per pixel of the background, and pan. */

import type { Point, Size } from '../lib/geometry';
import { studio } from '../lib/studio.svelte';

export const LEAST_ZOOM = 0.02;
export const MOST_ZOOM = 16;

/** All of the stage in a window, with a margin on each side. */
export function fit(stage: Size, window: Size, margin = 32): void {
  const inner = (side: number) => Math.max(40, side - 2 * margin);
  const zoom = Math.min(inner(window.width) / stage.width, inner(window.height) / stage.height, 4);
  studio.view = {
    zoom,
    x: (window.width - stage.width * zoom) / 2,
    y: (window.height - stage.height * zoom) / 2,
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
