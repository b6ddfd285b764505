/** The stage as Konva draws it. Its pixels are the background's; zoom and pan move the view alone. */

import { Group } from 'konva/lib/Group.js';
import { Layer as Sheet } from 'konva/lib/Layer.js';
import { Stage } from 'konva/lib/Stage.js';
import { Image as Picture } from 'konva/lib/shapes/Image.js';
import { Rect as Frame } from 'konva/lib/shapes/Rect.js';
import { Transformer } from 'konva/lib/shapes/Transformer.js';
import { wrap, type Placement, type Point, type Rect, type Size } from '../lib/geometry';
import { canvasOf, pencil, type Pyramid } from '../lib/raster';
import type { Mask } from '../lib/mask';
import type { Sprite } from '../lib/sprite';
import type { Layer, View } from '../lib/studio.svelte';

export interface Listener {
  select(id: number): void;
  live(id: number, place: Placement): void;
  placed(id: number, place: Placement): void;
}

interface Piece {
  group: Group;
  picture: Picture;
  ghost: Picture;
  layer: Layer;
  sprite: Sprite;
}

const TINT = '#ff4d6d';
const NO_IMAGE = undefined as unknown as CanvasImageSource;

export class Board {
  readonly stage: Stage;
  private base = new Sheet({ listening: false });
  private scene = new Sheet();
  private top = new Sheet();
  /** What a scene is to fill, while there is nothing below the subjects. */
  private sheet = new Frame({ visible: false, fill: 'rgb(128 134 150 / 18%)', stroke: '#888e9e', strokeScaleEnabled: false });
  private under = new Picture({ image: NO_IMAGE, visible: false });
  private over = new Picture({ image: NO_IMAGE });
  private curtain = new Group({ visible: false });
  private glance = new Picture({ image: NO_IMAGE, visible: false, listening: false });
  private veil = new Picture({ image: NO_IMAGE, visible: false, listening: false, opacity: 0.55 });
  private frame = new Frame({ visible: false, listening: false, strokeScaleEnabled: false });
  private handles: Transformer;
  private pieces = new Map<number, Piece>();
  private view: View = { zoom: 1, x: 0, y: 0 };
  private ground: Pyramid | null = null;
  private result: Pyramid | null = null;
  private tint: HTMLCanvasElement | null = null;
  private painting = false;
  private movable = false;
  private held = false;
  private glanced = false;

  constructor(
    container: HTMLDivElement,
    private listener: Listener,
    accent: string,
  ) {
    this.stage = new Stage({ container, width: 10, height: 10 });
    this.curtain.add(this.over);
    this.base.add(this.sheet, this.under, this.curtain, this.glance);
    this.handles = new Transformer({
      flipEnabled: false,
      keepRatio: true,
      enabledAnchors: ['top-left', 'top-right', 'bottom-left', 'bottom-right'],
      rotationSnaps: [0, 45, 90, 135, 180, 225, 270, 315],
      rotationSnapTolerance: 3,
      rotateAnchorOffset: 28,
      anchorSize: matchMedia('(pointer: coarse)').matches ? 20 : 11,
      anchorCornerRadius: 20,
      anchorStroke: accent,
      anchorFill: '#fff',
      borderStroke: accent,
      borderStrokeWidth: 1.5,
      ignoreStroke: true,
      boundBoxFunc: (was, now) => (Math.min(now.width, now.height) < 4 ? was : now),
    });
    this.frame.stroke(accent).strokeWidth(2).dash([6, 4]);
    this.top.add(this.veil, this.frame, this.handles);
    this.stage.add(this.base, this.scene, this.top);
    for (const sheet of [this.base, this.scene, this.top]) {
      sheet.getNativeCanvasElement().setAttribute('aria-hidden', 'true');
    }
  }

  destroy(): void {
    this.stage.destroy();
  }

  resize(width: number, height: number): void {
    this.stage.size({ width, height });
  }

  setView(view: View): void {
    this.view = view;
    this.stage.scale({ x: view.zoom, y: view.zoom }).position({ x: view.x, y: view.y });
    this.chooseLevels();
    this.stage.batchDraw();
  }

  /** The picture below everything, drawn over so many pixels of the stage; or an open sheet. */
  setGround(ground: Pyramid | null, size: Size, open: boolean): void {
    this.ground = ground;
    this.under.visible(ground !== null).size(size);
    this.sheet.visible(ground === null && open).size(size);
    if (ground) this.under.image(ground.at(this.density(size, ground.base)));
    this.base.batchDraw();
  }

  /** A result over it, from a share of its width on; nothing else is seen then. */
  setResult(result: Pyramid | null, size: Size, split: number): void {
    this.result = result;
    this.scene.visible(!result);
    this.top.visible(!result);
    this.curtain.visible(result !== null);
    this.glance.visible(!result && this.glanced);
    if (result) {
      const x = split * size.width;
      this.curtain.clip({ x, y: 0, width: size.width - x, height: size.height });
      this.over.size(size).image(result.at(this.density(size, result.base)));
    }
    this.base.batchDraw();
  }

  /** How the picture is about to look: over the ground, in place of the subjects. */
  setGlance(image: CanvasImageSource | null, size: Size): void {
    this.glanced = image !== null;
    this.glance.visible(this.glanced && !this.result).size(size);
    if (image) this.glance.image(image);
    this.showPieces();
    this.base.batchDraw();
  }

  /** Hide the glance while something is moved. */
  private dropGlance(): void {
    if (!this.glanced) return;
    this.glanced = false;
    this.glance.visible(false);
    this.showPieces();
    this.base.batchDraw();
  }

  setLayers(
    layers: Layer[],
    sprites: Map<number, Sprite>,
    selected: number | null,
    mode: { movable: boolean; painting: boolean },
  ): void {
    const gone = new Set(this.pieces.keys());
    this.painting = mode.painting;
    this.movable = mode.movable;
    for (const [index, layer] of layers.entries()) {
      gone.delete(layer.id);
      const sprite = sprites.get(layer.id);
      if (!sprite) continue;
      const piece = this.pieces.get(layer.id) ?? this.piece(layer, sprite);
      piece.layer = layer;
      this.placePiece(piece);
      piece.group.zIndex(index).draggable(mode.movable && !layer.locked && !this.held);
      piece.ghost.visible(mode.painting && layer.id === selected);
    }
    for (const id of gone) {
      this.pieces.get(id)!.group.destroy();
      this.pieces.delete(id);
    }
    const chosen = selected === null ? undefined : this.pieces.get(selected);
    const movable = chosen && mode.movable && !chosen.layer.locked;
    this.handles.nodes(movable ? [chosen.group] : []);
    this.scene.listening(mode.movable);
    this.handles.listening(mode.movable);
    this.showPieces();
    this.chooseLevels();
    this.scene.batchDraw();
    this.top.batchDraw();
  }

  setMask(mask: Mask | null, size: Size): void {
    this.veil.visible(mask !== null).size(size);
    if (mask) {
      if (this.tint?.width !== mask.width || this.tint.height !== mask.height)
        this.tint = canvasOf(mask.width, mask.height);
      this.veil.image(this.tint);
      this.tintPart(mask, { x: 0, y: 0, width: mask.width, height: mask.height });
    }
    this.top.batchDraw();
  }

  /** Show a part of the mask that was painted over. */
  tintPart(mask: Mask, box: Rect): void {
    if (!this.tint) return;
    const pen = pencil(this.tint);
    const part = [box.x, box.y, box.width, box.height] as const;
    pen.save();
    pen.beginPath();
    pen.rect(...part);
    pen.clip();
    pen.clearRect(...part);
    pen.drawImage(mask.canvas, ...part, ...part);
    pen.globalCompositeOperation = 'source-in';
    pen.fillStyle = TINT;
    pen.fillRect(...part);
    pen.restore();
    this.top.batchDraw();
  }

  /** A subject's pixels changed under the brush. */
  redraw(id: number): void {
    const piece = this.pieces.get(id);
    if (piece) this.chooseLevel(piece);
    this.scene.batchDraw();
  }

  setFrame(box: Rect | null, of: number | null): void {
    const place = of === null ? undefined : this.pieces.get(of);
    this.frame.visible(box !== null);
    if (box) {
      const group = place?.group;
      const { x, y, width, height } = place?.layer.crop ?? { x: 0, y: 0, width: 0, height: 0 };
      const flip = place?.layer.place.flip ? -1 : 1;
      const own = { x: box.x - x - width / 2, y: box.y - y - height / 2 };
      if (group) own.x = flip < 0 ? -own.x - box.width : own.x;
      const transform = group?.getTransform().decompose();
      const at = group ? group.getTransform().point(own) : box;
      this.frame.setAttrs({ ...transform, skewX: 0, ...at, width: box.width, height: box.height });
    }
    this.top.batchDraw();
  }

  /** The subject or handle at a point of the screen. */
  hit(point: Point): 'handle' | number | null {
    const shape = this.stage.getIntersection(point);
    if (!shape) return null;
    for (const [id, piece] of this.pieces) if (piece.picture === shape) return id;
    return shape.getParent() === this.handles ? 'handle' : null;
  }

  /** Take no subject by one finger, nor go on with what one has begun, while there are two. */
  hold(held: boolean): void {
    this.held = held;
    for (const { group, layer } of this.pieces.values())
      group.draggable(!held && this.movable && !layer.locked);
    if (held && this.handles.isTransforming()) this.handles.stopTransform();
  }

  /** Show a subject elsewhere for a moment, as between two fingers. */
  tryPlace(id: number, place: Placement): void {
    const piece = this.pieces.get(id);
    if (!piece) return;
    this.dropGlance();
    this.placePiece(piece, place);
    this.scene.batchDraw();
    this.top.batchDraw();
    this.listener.live(id, place);
  }

  private piece(layer: Layer, sprite: Sprite): Piece {
    const group = new Group({ name: `subject-${layer.id}` });
    const ghost = new Picture({ image: sprite.photo, opacity: 0.3, listening: false });
    const picture = new Picture({ image: sprite.cutout });
    group.add(ghost, picture);
    this.scene.add(group);
    const piece: Piece = { group, ghost, picture, layer, sprite };
    this.pieces.set(layer.id, piece);
    const id = layer.id;
    group.on('pointerdown', () => this.listener.select(id));
    group.on('dragstart transformstart', () => this.dropGlance());
    group.on('dragmove transform', () => this.listener.live(id, this.placeOf(piece)));
    group.on('dragend transformend', () => this.listener.placed(id, this.placeOf(piece)));
    return piece;
  }

  private placeOf({ group, layer }: Piece): Placement {
    return {
      at: { x: group.x(), y: group.y() },
      scale: Math.abs(group.scaleX()),
      rotate: Math.round(-wrap(group.rotation()) * 100) / 100 || 0,
      flip: layer.place.flip,
    };
  }

  private placePiece({ group, picture, ghost, layer, sprite }: Piece, place = layer.place): void {
    const { crop } = layer;
    group.position(place.at).scale({ x: place.scale, y: place.scale }).rotation(-place.rotate);
    const side = place.flip ? -1 : 1;
    const { width, height } = sprite.photo;
    picture.size({ width: crop.width, height: crop.height }).scaleX(side);
    picture.offset({ x: crop.width / 2, y: crop.height / 2 });
    ghost.size({ width, height }).scaleX(side);
    ghost.offset({ x: crop.x + crop.width / 2, y: crop.y + crop.height / 2 });
  }

  /** While the glance is up, the subjects are there to be taken hold of but not seen. */
  private showPieces(): void {
    const opacity = this.glanced && !this.painting ? 0 : 1;
    for (const { picture } of this.pieces.values()) picture.opacity(opacity);
    this.scene.batchDraw();
  }

  private density(size: Size, raster: Size): number {
    return (this.view.zoom * devicePixelRatio * size.width) / raster.width;
  }

  private chooseLevels(): void {
    if (this.ground) this.under.image(this.ground.at(this.density(this.under.size(), this.ground.base)));
    if (this.result) this.over.image(this.result.at(this.density(this.over.size(), this.result.base)));
    for (const piece of this.pieces.values()) this.chooseLevel(piece);
  }

  private chooseLevel({ picture, layer, sprite }: Piece): void {
    const level = sprite.pyramid.at(this.view.zoom * devicePixelRatio * layer.place.scale);
    const part = level.width / sprite.photo.width;
    const { x, y, width, height } = layer.crop;
    picture.image(level);
    picture.crop({ x: x * part, y: y * part, width: width * part, height: height * part });
  }
}
