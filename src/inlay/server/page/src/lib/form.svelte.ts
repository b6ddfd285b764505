/** Verb, method and settings, as the server describes them; only what differs from a default counts. */

import * as api from './api';
import type { Knob, Method } from './api';
import { studio, type Verb } from './studio.svelte';

/** Settings that matter first, in this order; of a method the first few that it has. */
const FIRST = [
  'amount', 'T_in', 'inpaint', 'details', 'variant', 'num_iterations', 'iterations', 'strength',
  'num_inference_steps', 'guidance_scale', 'strength_start', 'radius', 'reach', 'gradients',
  'context', 'shadow', 'dilate', 'algorithm',
];
const SHOWN_FIRST = 3;
/** They have fields of their own. */
const OWN_FIELDS = ['prompt', 'negative_prompt'];
/** A page's user names no files of the server. */
const NAMES_FILES = ['adapter', 'harmonizer', 'ip_adapter'];

/** What else a request may say, which has no field here: it is kept, and can be left out. */
const CARRIED = ['phases', 'remove', 'repose', 'remove_mask', 'control', 'keep_phases'];

/** A value of a JSON schema as a knob, so that both kinds of description make one kind of field. */
export function knobOf(name: string, property: any, description = ''): Knob {
  const options: any[] = property.anyOf ?? [property];
  const body = options.find((option) => option.type !== 'null') ?? property;
  return {
    name,
    type: body.enum ? 'choice' : body.type === 'string' ? 'text' : (body.type ?? 'other'),
    description: body.description ?? property.description ?? description,
    default: property.default ?? null,
    minimum: body.minimum,
    maximum: body.maximum,
    choices: body.enum,
    nullable: options.some((option) => option.type === 'null'),
  };
}

class Form {
  methods: Record<string, Method> = $state.raw({});
  schemas: Record<string, any> = $state.raw({});
  models: string[] = $state.raw([]);
  limits: Record<string, number> = $state.raw({});
  model = $state('');
  prompt = $state('');
  negative = $state('');
  seed = $state(0);
  variants = $state(1);
  together = $state(false);
  preset: string | null = $state(null);
  shadow: Record<string, any> = $state({});
  /** What a request that was put back says besides, by the name of its field. */
  carried: Record<string, any> = $state.raw({});
  /** Of each method, what differs from its default. */
  values: Record<string, Record<string, any>> = $state({});
  private chosen: Record<string, string> = $state({});

  async start(): Promise<void> {
    const session = await api.session();
    this.models = session.models;
    this.limits = session.limits ?? {};
    this.model = session.models[0] ?? '';
    await this.describe();
    const verbs = ['compose', 'harmonize', 'remove', 'scene', 'learn'];
    const found = await Promise.all(verbs.map((verb) => api.schema(verb).catch(() => null)));
    this.schemas = Object.fromEntries(verbs.map((verb, index) => [verb, found[index]]));
  }

  async describe(): Promise<void> {
    this.methods = await api.methods(this.model || undefined);
  }

  /** All subjects are concepts: methods that paint them are the ones to take. */
  get concepts(): boolean {
    const { layers } = studio;
    return layers.length > 0 && layers.every((layer) => layer.kind === 'concept');
  }

  get names(): string[] {
    const usable = ([, method]: [string, Method]) =>
      method.verbs.includes(studio.verb) && (!method.concepts || this.concepts);
    return Object.entries(this.methods).filter(usable).map(([name]) => name);
  }

  get name(): string {
    const chosen = this.chosen[studio.verb];
    if (chosen && this.names.includes(chosen)) return chosen;
    const defaults = this.names.filter((name) =>
      this.methods[name]!.default_for.includes(studio.verb),
    );
    const fitting = defaults.find((name) => this.methods[name]!.concepts === this.concepts);
    return fitting ?? defaults[0] ?? this.names[0] ?? '';
  }

  set name(name: string) {
    this.chosen[studio.verb] = name;
    this.preset = null;
  }

  get method(): Method | null {
    return this.methods[this.name] ?? null;
  }

  get hasPrompt(): boolean {
    return !!this.method?.settings.some((knob) => knob.name === 'prompt');
  }

  private get own(): Knob[] {
    const skipped = [...OWN_FIELDS, ...NAMES_FILES];
    return (this.method?.settings ?? []).filter(
      (knob) => !skipped.includes(knob.name) && knob.type !== 'other' && knob.type !== 'list',
    );
  }

  get first(): Knob[] {
    const own = this.own;
    if (own.length <= SHOWN_FIRST + 1) return own;
    const found = FIRST.map((name) => own.find((knob) => knob.name === name));
    return found.filter((knob) => knob !== undefined).slice(0, SHOWN_FIRST);
  }

  get folded(): Knob[] {
    const first = this.first;
    return this.own.filter((knob) => !first.includes(knob));
  }

  /** A setting's value: what was given, else the preset's, else the default. */
  value(knob: Knob): any {
    const given = this.values[this.name]?.[knob.name];
    if (given !== undefined) return given;
    return this.base(knob);
  }

  private base(knob: Knob): any {
    const preset = this.preset ? this.method?.presets[this.preset] : undefined;
    return preset?.[knob.name] ?? knob.default;
  }

  set(knob: Knob, value: any): void {
    const values = { ...this.values[this.name] };
    if (value === this.base(knob)) delete values[knob.name];
    else values[knob.name] = value;
    this.values = { ...this.values, [this.name]: values };
  }

  changed(knob: Knob): boolean {
    return this.values[this.name]?.[knob.name] !== undefined;
  }

  get changes(): number {
    return Object.keys(this.values[this.name] ?? {}).length;
  }

  reset(): void {
    this.values = { ...this.values, [this.name]: {} };
  }

  get shadowKnobs(): Knob[] {
    const options: any[] = this.schemas.compose?.properties?.shadow?.anyOf ?? [];
    const properties = options.find((option) => option.properties)?.properties ?? {};
    return Object.entries(properties).map(([name, property]) => knobOf(name, property));
  }

  get shadowKind(): string {
    return this.shadow.kind ?? 'auto';
  }

  /** The method of a request, with the settings that differ from its defaults. */
  choice(): Record<string, any> {
    const text: Record<string, string> = {};
    if (this.hasPrompt && this.prompt.trim()) text.prompt = this.prompt.trim();
    if (this.hasPrompt && this.negative.trim()) text.negative_prompt = this.negative.trim();
    const preset = this.preset ? { preset: this.preset } : {};
    return { name: this.name, ...preset, ...text, ...this.values[this.name] };
  }

  /** Take method and settings from a request. */
  read(request: Record<string, any>): void {
    const { name, preset, prompt, negative_prompt, ...values } = request.method ?? {};
    const verb = request.verb as Verb;
    if (name) this.chosen[verb] = name;
    this.preset = preset ?? null;
    this.prompt = prompt ?? '';
    this.negative = negative_prompt ?? '';
    this.seed = request.seed ?? 0;
    this.variants = request.num_images ?? 1;
    this.together = !!request.together;
    const shadow = typeof request.shadow === 'string' ? { kind: request.shadow } : request.shadow;
    this.shadow = differing(shadow ?? {}, this.shadowKnobs, (knob) => knob.default);
    const fields = request.verb === 'harmonize' ? ['background'] : CARRIED;
    const carried = fields.filter((field) => request[field] && request[field].length !== 0);
    this.carried = Object.fromEntries(carried.map((field) => [field, request[field]]));
    const method = this.methods[name];
    if (method) {
      const kept = differing(values, method.settings, (knob) => this.base(knob));
      this.values = { ...this.values, [name]: kept };
    }
  }
}

function differing(values: Record<string, any>, knobs: Knob[], base: (knob: Knob) => any) {
  const known = knobs.filter((knob) => knob.name in values && values[knob.name] !== base(knob));
  return Object.fromEntries(known.map((knob) => [knob.name, values[knob.name]]));
}

export const form = new Form();
