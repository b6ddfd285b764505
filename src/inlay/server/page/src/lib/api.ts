/** The server's HTTP interface, typed; whatever it refuses becomes a Refusal with its sentence. */

export interface StoredFile {
  file: string;
  width: number | null;
  height: number | null;
  has_alpha: boolean;
  kind: 'picture' | 'concept';
  class_name?: string;
}

export interface Cut {
  file: string;
  mask: string;
  notes?: string[];
}

export type State = 'queued' | 'running' | 'done' | 'failed' | 'cancelled';

export interface Job {
  id: string;
  verb: string;
  state: State;
  position: number | null;
  step: number | null;
  total: number | null;
  error: string | null;
  created: number | string;
  started: number | string | null;
  finished: number | string | null;
  images: number;
  request: Record<string, any>;
  record: Record<string, any> | null;
  file: string | null;
  files?: string[];
}

export interface Knob {
  name: string;
  type: 'integer' | 'number' | 'boolean' | 'choice' | 'text' | 'list' | 'other';
  description: string;
  default: any;
  minimum?: number;
  maximum?: number;
  above?: number;
  below?: number;
  max_length?: number;
  choices?: any[];
  nullable?: boolean;
}

export interface Method {
  summary: string;
  source: string;
  verbs: string[];
  default_for: string[];
  needs_model: boolean;
  concepts: boolean;
  presets: Record<string, Record<string, any>>;
  settings: Knob[];
}

export interface Session {
  models: string[];
  limits: Record<string, number>;
  version?: string;
}

/** What the server said no to, in its own sentence. */
export class Refusal extends Error {}

async function send(path: string, init: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, { credentials: 'same-origin', ...init });
  } catch (error) {
    if ((error as Error).name === 'AbortError') throw error;
    throw new Refusal('The server does not answer; is inlay serve still running?');
  }
  if (answer.status === 401) location.reload();
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const sentence = typeof body.error === 'string' ? body.error : `The server answered ${answer.status}.`;
  throw new Refusal(sentence.charAt(0).toUpperCase() + sentence.slice(1));
}

const json = (body: unknown, signal?: AbortSignal): RequestInit => ({
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify(body),
  signal,
});

export const fileUrl = (hash: string, size?: number) =>
  `/api/files/${hash}${size ? `?size=${size}` : ''}`;

export const resultUrl = (id: string, n = 0, size?: number) =>
  `/api/jobs/${id}/result?n=${n}${size ? `&size=${size}` : ''}`;

export const eventsUrl = (id: string) => `/api/jobs/${id}/events`;

const get = async (path: string) => (await send(path)).json();
const post = async (path: string, body: unknown) => (await send(path, json(body))).json();

export const session = (): Promise<Session> => get('/api/session');
export const methods = (model?: string): Promise<Record<string, Method>> =>
  get(`/api/methods${model ? `?model=${encodeURIComponent(model)}` : ''}`);
export const schema = (verb: string): Promise<any> => get(`/api/schema/${verb}`);

export async function upload(data: Blob, name = 'picture.png'): Promise<StoredFile> {
  const form = new FormData();
  form.append('file', data, name);
  return (await send('/api/files', { method: 'POST', body: form })).json();
}

export const fileInfo = (hash: string): Promise<StoredFile> => get(`/api/files/${hash}/info`);
export const cut = (body: object): Promise<Cut> => post('/api/cut', body);
export const open = (file: string): Promise<{ request: any; missing?: string[] }> =>
  post('/api/open', { file });

export async function preview(request: object, size: number, signal: AbortSignal): Promise<Blob> {
  return (await send('/api/preview', json({ request, size }, signal))).blob();
}

export const order = (request: object): Promise<{ id: string }> => post('/api/jobs', request);
export const job = (id: string): Promise<Job> => get(`/api/jobs/${id}`);
export const jobs = async (limit = 60): Promise<Job[]> =>
  (await get(`/api/jobs?limit=${limit}`)).jobs;
export const cancel = (id: string) => send(`/api/jobs/${id}`, { method: 'DELETE' });
export const bytes = async (path: string): Promise<Blob> => (await send(path)).blob();
