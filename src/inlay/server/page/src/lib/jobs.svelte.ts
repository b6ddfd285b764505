/** Jobs of this client: what runs, what was made, and what of it is looked at. */

import * as api from './api';
import type { Job } from './api';
import { messages } from './messages.svelte';
import { requestOf } from './request';
import { sentence } from './words';

const FAILED = 'it failed, and the server gives no reason';

const open = (job: Job) => job.state === 'queued' || job.state === 'running';

class Jobs {
  list: Job[] = $state.raw([]);
  /** The one whose result lies on the stage, and which of its pictures. */
  shown: Job | null = $state.raw(null);
  number = $state(0);
  /** The latest preview of a running job, by id. */
  previews: Record<string, string> = $state.raw({});
  /** The job that was last asked for here, and whether one is being asked for. */
  latest: string | null = $state(null);
  sending = $state(false);
  /** Those asked for since the page was loaded; their results come onto the stage by themselves. */
  private own = new Set<string>();
  private streams = new Map<string, EventSource>();

  async start(): Promise<void> {
    this.list = await api.jobs();
    this.list.filter(open).forEach((job) => this.listen(job.id));
    this.latest = this.list.find(open)?.id ?? null;
  }

  get running(): Job | null {
    const job = this.list.find((each) => each.id === this.latest);
    return job && open(job) ? job : (this.list.findLast(open) ?? null);
  }

  get finished(): Job[] {
    return this.list.filter((job) => job.state === 'done');
  }

  /** Ask for what is on the stage, or for a request of its own. */
  async run(request?: Record<string, any>): Promise<void> {
    if (this.sending) return;
    this.sending = true;
    await messages.during('Sending', async () => {
      const { id } = await api.order(request ?? (await requestOf()));
      this.latest = id;
      this.own.add(id);
      this.put(await api.job(id));
      this.listen(id);
    });
    this.sending = false;
  }

  async cancel(id: string): Promise<void> {
    await messages.during('Cancelling', () => api.cancel(id));
  }

  async forget(id: string): Promise<void> {
    const done = await messages.during('Deleting', () => api.cancel(id));
    if (!done) return;
    this.list = this.list.filter((job) => job.id !== id);
    if (this.shown?.id === id) this.shown = null;
  }

  show(job: Job | null, number = 0): void {
    this.shown = job;
    this.number = number;
  }

  private put(job: Job): void {
    const known = this.list.some((each) => each.id === job.id);
    this.list = known
      ? this.list.map((each) => (each.id === job.id ? job : each))
      : [job, ...this.list];
  }

  /** The browser takes up a broken stream by itself, at the event it last saw. */
  private listen(id: string): void {
    if (this.streams.has(id)) return;
    const stream = new EventSource(api.eventsUrl(id));
    this.streams.set(id, stream);
    const change = (data: Partial<Job>) => {
      const job = this.list.find((each) => each.id === id);
      if (job) this.put({ ...job, ...data });
    };
    const on = (name: string, act: (data: any) => void) =>
      stream.addEventListener(name, (event) => act(JSON.parse((event as MessageEvent).data)));
    on('state', change);
    on('progress', change);
    on('preview', ({ image }) => (this.previews = { ...this.previews, [id]: image }));
    on('done', async () => {
      stream.close();
      this.streams.delete(id);
      const job = await api.job(id).catch(() => null);
      const { [id]: _, ...rest } = this.previews;
      this.previews = rest;
      if (!job) return;
      this.put(job);
      if (job.state === 'failed') messages.say(sentence(job.error || FAILED), 'error');
      job.record?.notes?.forEach((note: string) => messages.say(sentence(note)));
      if (job.state !== 'done') return;
      if (job.verb === 'learn')
        messages.say('The object is learnt; it lies under Learn, ready for the stage.');
      else if (id === this.latest && this.own.has(id)) this.show(job);
      else messages.say('A picture is done; it lies in the history.');
    });
  }
}

export const jobs = new Jobs();
