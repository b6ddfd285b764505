/** What was done, so that it can be undone and done again. */

interface Step {
  undo: () => void;
  redo: () => void;
  bytes: number;
  /** Steps of one name that follow at once are one step: a key that is held down. */
  name: string;
  time: number;
}

const MOST_BYTES = 256 * 1024 * 1024;
const MOST_STEPS = 200;
const TOGETHER_MS = 600;

class Undo {
  private past: Step[] = $state.raw([]);
  private future: Step[] = $state.raw([]);

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  get canRedo(): boolean {
    return this.future.length > 0;
  }

  push(undo: () => void, redo: () => void, { bytes = 0, name = '' } = {}): void {
    const time = performance.now();
    const last = this.past.at(-1);
    const steps = [...this.past];
    if (name && last?.name === name && time - last.time < TOGETHER_MS) {
      steps[steps.length - 1] = { ...last, redo, time };
    } else {
      steps.push({ undo, redo, bytes, name, time });
    }
    let total = steps.reduce((sum, step) => sum + step.bytes, 0);
    while (steps.length > MOST_STEPS || (total > MOST_BYTES && steps.length > 1))
      total -= steps.shift()!.bytes;
    this.past = steps;
    this.future = [];
  }

  undo(): void {
    const step = this.past.at(-1);
    if (!step) return;
    this.past = this.past.slice(0, -1);
    this.future = [...this.future, step];
    step.undo();
  }

  redo(): void {
    const step = this.future.at(-1);
    if (!step) return;
    this.future = this.future.slice(0, -1);
    this.past = [...this.past, step];
    step.redo();
  }

  clear(): void {
    this.past = this.future = [];
  }
}

export const history = new Undo();
