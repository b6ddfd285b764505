/** Keys on the stage, and those that hold everywhere. */

import { jobs } from '../lib/jobs.svelte';
import { missing } from '../lib/request';
import { studio, type Tool } from '../lib/studio.svelte';
import { history } from '../lib/undo.svelte';

const TOOLS: Record<string, Tool> = {
  v: 'move', h: 'hand', b: 'brush', e: 'eraser', m: 'box', p: 'point',
};

/** On the stage: the selected subject. */
export function keys(event: KeyboardEvent): void {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const far = event.shiftKey ? 10 : 1;
  const acts: Record<string, () => void> = {
    ArrowLeft: () => studio.nudge({ x: -far, y: 0 }),
    ArrowRight: () => studio.nudge({ x: far, y: 0 }),
    ArrowUp: () => studio.nudge({ x: 0, y: -far }),
    ArrowDown: () => studio.nudge({ x: 0, y: far }),
    '+': () => studio.scaleBy(1.02),
    '=': () => studio.scaleBy(1.02),
    '-': () => studio.scaleBy(1 / 1.02),
    '[': () => studio.rotateBy(1),
    ']': () => studio.rotateBy(-1),
    '{': () => studio.rotateBy(15),
    '}': () => studio.rotateBy(-15),
    f: () => studio.flip(),
    l: () => studio.layer && studio.touch(studio.layer.id, { locked: !studio.layer.locked }),
    d: () => studio.layer && studio.duplicate(studio.layer.id),
    Delete: () => studio.layer && studio.remove(studio.layer.id),
    Backspace: () => studio.layer && studio.remove(studio.layer.id),
    PageUp: () => studio.layer && studio.reorder(studio.layer.id, 1),
    PageDown: () => studio.layer && studio.reorder(studio.layer.id, -1),
    '.': () => (studio.brush = Math.min(160, studio.brush + 6)),
    ',': () => (studio.brush = Math.max(4, studio.brush - 6)),
  };
  const act = acts[event.key];
  if (!act) return;
  act();
  event.preventDefault();
}

const typing = (event: Event) =>
  event.target instanceof HTMLElement && event.target.matches('input, textarea, select');

/** Everywhere: undo, run, tools, and back from a result. */
export function globalKeys(event: KeyboardEvent): void {
  const command = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  if (command && key === 'enter') {
    if (!missing() && studio.verb !== 'learn') void jobs.run();
  } else if (typing(event)) {
    return;
  } else if (command && key === 'z') {
    if (event.shiftKey) history.redo();
    else history.undo();
  } else if (command && key === 'y') {
    history.redo();
  } else if (command || event.altKey) {
    return;
  } else if (key === 'escape') {
    if (jobs.shown) jobs.show(null);
    else if (studio.tool !== 'move') studio.tool = 'move';
    else studio.selected = null;
  } else if (TOOLS[key]) {
    studio.tool = TOOLS[key];
  } else {
    return;
  }
  event.preventDefault();
}
