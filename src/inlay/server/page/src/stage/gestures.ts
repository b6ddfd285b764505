/** Fingers, mouse and wheel on the stage: pan, pinch, brush, box and point. */

import { between, inward, outward, wrap, type Placement, type Point } from '../lib/geometry';
import { currentMask, cutAgain, groundMaskChanged, keepPatch, spriteChanged } from '../lib/pictures';
import { studio, type Layer } from '../lib/studio.svelte';
import type { Board } from './board';
import { onStage, pan, zoomTo } from './view';

type Act = 'pan' | 'brush' | 'box' | 'point' | 'pinch' | 'other';

const CLICK = 5;

export class Gestures {
  private fingers = new Map<number, Point>();
  private act: Act | null = null;
  private start: Point = { x: 0, y: 0 };
  private moved = false;
  private pinched: { id: number; place: Placement } | null = null;
  private pinch: { mid: Point; span: number; angle: number } | null = null;
  /** The space bar is held: the pointer is a hand. */
  private grab = false;

  constructor(
    private element: HTMLElement,
    private board: Board,
    private looking: () => boolean,
  ) {
    element.addEventListener('pointerdown', this.down, true);
    element.addEventListener('pointermove', this.move, true);
    for (const name of ['pointerup', 'pointercancel'] as const)
      element.addEventListener(name, this.up, true);
    element.addEventListener('wheel', this.wheel, { passive: false });
    for (const name of ['keydown', 'keyup'] as const) element.addEventListener(name, this.space);
  }

  private at(event: MouseEvent): Point {
    const box = this.element.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  private space = (event: KeyboardEvent): void => {
    if (event.key !== ' ') return;
    event.preventDefault();
    this.grab = event.type === 'keydown';
  };

  private down = (event: PointerEvent): void => {
    const at = this.at(event);
    this.element.focus({ preventScroll: true });
    this.fingers.set(event.pointerId, at);
    if (this.fingers.size === 2) return this.beginPinch();
    if (this.fingers.size > 2) return;
    this.start = at;
    this.moved = false;
    this.act = this.actFor(event, at);
    if (this.act !== 'other') this.element.setPointerCapture(event.pointerId);
    if (this.act === 'brush') {
      currentMask()?.begin();
      this.paint(at);
    }
  };

  private actFor(event: PointerEvent, at: Point): Act {
    if (this.grab || event.button === 1 || studio.tool === 'hand' || this.looking()) return 'pan';
    if (event.button !== 0) return 'other';
    const { tool } = studio;
    if (tool !== 'move' && studio.paintable) {
      if (tool === 'box' || tool === 'point') return tool;
      return 'brush';
    }
    return this.board.hit(at) === null ? 'pan' : 'other';
  }

  private move = (event: PointerEvent): void => {
    const last = this.fingers.get(event.pointerId);
    if (!last) return;
    const at = this.at(event);
    this.fingers.set(event.pointerId, at);
    if (Math.hypot(at.x - this.start.x, at.y - this.start.y) > CLICK) this.moved = true;
    if (this.act === 'pinch') this.movePinch();
    else if (this.act === 'pan') pan({ x: at.x - last.x, y: at.y - last.y });
    else if (this.act === 'box') this.showBox(at);
    else if (this.act === 'brush')
      for (const part of event.getCoalescedEvents?.() ?? [event]) this.paint(this.at(part));
  };

  private up = (event: PointerEvent): void => {
    if (!this.fingers.delete(event.pointerId)) return;
    const { act } = this;
    if (act === 'pinch') {
      if (this.fingers.size < 2) this.endPinch();
      if (!this.fingers.size) this.act = null;
      return;
    }
    this.act = null;
    const at = this.at(event);
    if (act === 'brush') this.endStroke();
    else if (act === 'box') this.endBox(at);
    else if (act === 'point' && !this.moved) void cutAgain({ point: this.inPicture(at) });
    else if (act === 'pan' && !this.moved && studio.tool === 'move' && !this.looking())
      studio.selected = null;
  };

  private wheel = (event: WheelEvent): void => {
    event.preventDefault();
    const by = event.deltaY || event.deltaX;
    if (event.altKey && studio.layer) studio.scaleBy(Math.exp(-by * 0.001));
    else if (event.shiftKey && studio.layer) studio.rotateBy(by > 0 ? -2 : 2);
    else zoomTo(studio.view.zoom * Math.exp(-by * (event.ctrlKey ? 0.01 : 0.0016)), this.at(event));
  };

  /** Where brush, box and point are: in pixels of the mask, or of the ground for a box and a point. */
  private inPicture(at: Point): Point {
    const point = onStage(at);
    const { layer } = studio;
    if (studio.masking || !layer) return point;
    const own = inward(point, layer.place);
    return {
      x: own.x + layer.crop.x + layer.crop.width / 2,
      y: own.y + layer.crop.y + layer.crop.height / 2,
    };
  }

  private paint(at: Point): void {
    const mask = currentMask();
    if (!mask) return;
    const { ground, layer, masking } = studio;
    const unit = masking ? ground!.width / mask.width : layer!.place.scale;
    const point = this.inPicture(at);
    const to = masking ? { x: point.x / unit, y: point.y / unit } : point;
    const box = mask.stroke(to, studio.brush / studio.view.zoom / unit, studio.tool === 'eraser');
    if (!box) return;
    if (masking) return this.board.tintPart(mask, box);
    studio.sprites.get(layer!.id)!.redraw(box);
    this.board.redraw(layer!.id);
  }

  private endStroke(): void {
    const patch = currentMask()?.end();
    if (!patch) return;
    if (studio.masking) {
      groundMaskChanged();
      return keepPatch(null, patch);
    }
    const { id } = studio.layer!;
    studio.sprites.get(id)!.measure();
    spriteChanged(id, '');
    keepPatch(id, patch);
  }

  private showBox(at: Point): void {
    const of = studio.masking ? null : studio.selected;
    this.board.setFrame(between(this.inPicture(this.start), this.inPicture(at)), of);
  }

  private endBox(at: Point): void {
    this.board.setFrame(null, null);
    const box = between(this.inPicture(this.start), this.inPicture(at));
    if (box.width > 3 && box.height > 3) void cutAgain({ box });
  }

  private measured(): { mid: Point; span: number; angle: number } {
    const [a, b] = [...this.fingers.values()] as [Point, Point];
    return {
      mid: { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 },
      span: Math.hypot(a.x - b.x, a.y - b.y),
      angle: (Math.atan2(b.y - a.y, b.x - a.x) * 180) / Math.PI,
    };
  }

  /** Two fingers: on the selected subject they scale and turn it, elsewhere they move the view. */
  private beginPinch(): void {
    if (this.act === 'brush') this.endStroke();
    this.board.setFrame(null, null);
    this.board.hold(true);
    this.act = 'pinch';
    this.pinch = this.measured();
    const layer = this.under(this.pinch.mid);
    this.pinched = layer && { id: layer.id, place: layer.place };
  }

  private under(at: Point): Layer | null {
    const { layer } = studio;
    if (!layer || layer.locked || studio.tool !== 'move' || this.looking()) return null;
    const own = inward(onStage(at), layer.place);
    const within = Math.abs(own.x) <= layer.crop.width / 2 && Math.abs(own.y) <= layer.crop.height / 2;
    return within ? layer : null;
  }

  private movePinch(): void {
    if (this.fingers.size < 2 || !this.pinch) return;
    const [was, now] = [this.pinch, this.measured()];
    const factor = now.span / Math.max(1, was.span);
    if (!this.pinched) {
      pan({ x: now.mid.x - was.mid.x, y: now.mid.y - was.mid.y });
      zoomTo(studio.view.zoom * factor, now.mid);
      this.pinch = now;
      return;
    }
    this.board.tryPlace(this.pinched.id, this.kept(this.pinched.place, was, now, factor));
  }

  /** The placement that keeps the point that was between the fingers between them. */
  private kept(
    place: Placement,
    was: { mid: Point; angle: number },
    now: { mid: Point; angle: number },
    factor: number,
  ): Placement {
    const held = inward(onStage(was.mid), place);
    const rotate = Math.round(wrap(place.rotate - (now.angle - was.angle)) * 100) / 100;
    const next = { ...place, scale: place.scale * factor, rotate };
    const [at, to] = [outward(held, next), onStage(now.mid)];
    return { ...next, at: { x: next.at.x + to.x - at.x, y: next.at.y + to.y - at.y } };
  }

  private endPinch(): void {
    if (this.pinched && this.pinch) {
      const live = studio.live;
      if (live?.id === this.pinched.id) studio.place(live.id, live.place);
    }
    studio.live = null;
    this.pinch = this.pinched = null;
    this.board.hold(false);
  }
}
