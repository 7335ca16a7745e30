import { describe, expect, it } from 'vitest';

import { readFrame } from './frames';

describe('readFrame', () => {
  it('reads what the server says', () => {
    expect(readFrame('{"type":"session","session_id":"s","cols":80,"rows":24,"shell":"/bin/bash"}')).toEqual({
      kind: 'session',
      id: 's',
      columns: 80,
      rows: 24,
    });
    expect(readFrame('{"type":"output","data":"日\\u001b[m"}')).toEqual({ kind: 'output', data: '日\u001b[m' });
    expect(readFrame('{"type":"resize","cols":100,"rows":30}')).toEqual({ kind: 'resize', columns: 100, rows: 30 });
    expect(readFrame('{"type":"exit","code":3}')).toEqual({ kind: 'exit', code: 3 });
  });
  it.each([
    ['nothing', ''],
    ['bytes', new ArrayBuffer(3)],
    ['a list', '[]'],
    ['a new kind', '{"type":"bell"}'],
    ['output without data', '{"type":"output"}'],
    ['an impossible size', '{"type":"resize","cols":0,"rows":30}'],
    ['a size that is no number', '{"type":"resize","cols":"80","rows":30}'],
  ])('ignores %s', (_, text) => {
    expect(readFrame(text)).toEqual({ kind: 'unknown' });
  });
});
