/** Examples to click: small renderings that the package ships for its tour. */

import hat from '../../../../assets/demo/hat.webp';
import stone from '../../../../assets/demo/stone.webp';
import table from '../../../../assets/demo/table.webp';
import teapot from '../../../../assets/demo/teapot.webp';
import terrace from '../../../../assets/demo/terrace.webp';
import vase from '../../../../assets/demo/vase.webp';
import * as api from './api';
import type { Rect } from './geometry';
import { addSubject, setGround } from './pictures';

export interface Example {
  name: string;
  background: string;
  subject: string;
  box: Rect;
}

export const EXAMPLES: Example[] = [
  { name: 'vase', background: table, subject: vase, box: { x: 150, y: 90, width: 130, height: 180 } },
  { name: 'teapot', background: terrace, subject: teapot, box: { x: 110, y: 190, width: 150, height: 110 } },
  { name: 'hat', background: stone, subject: hat, box: { x: 120, y: 200, width: 160, height: 100 } },
];

export async function show(example: Example): Promise<void> {
  await setGround(await api.bytes(example.background), 'place.webp');
  await addSubject(await api.bytes(example.subject), `${example.name}.webp`, example.box);
}
