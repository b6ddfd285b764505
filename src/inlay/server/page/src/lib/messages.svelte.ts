/** What the page has to say: short sentences that go away, and what it is busy with. */

import { Refusal } from './api';

export interface Message {
  id: number;
  text: string;
  kind: 'note' | 'error';
}

class Messages {
  list: Message[] = $state.raw([]);
  busy: string[] = $state.raw([]);
  private next = 1;

  say(text: string, kind: Message['kind'] = 'note'): void {
    const id = this.next++;
    this.list = [...this.list.slice(-3), { id, text, kind }];
    setTimeout(() => this.drop(id), kind === 'error' ? 12000 : 5000);
  }

  drop(id: number): void {
    this.list = this.list.filter((message) => message.id !== id);
  }

  /** Do something that takes a while; what goes wrong is said, and null comes back. */
  async during<T>(what: string, work: () => Promise<T>): Promise<T | null> {
    this.busy = [...this.busy, what];
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Refusal)) console.warn(error);
      this.say(error instanceof Refusal ? error.message : 'The picture could not be shown.', 'error');
      return null;
    } finally {
      const at = this.busy.indexOf(what);
      this.busy = this.busy.filter((_, index) => index !== at);
    }
  }
}

export const messages = new Messages();
