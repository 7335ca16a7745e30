// Keys a browser keeps for itself, and text for devices without a keyboard, as X keysyms.

export interface Key {
  /** X keysym. */
  keysym: number;
  /** `KeyboardEvent.code`, for servers that want the physical key. */
  code: string | null;
}

const CONTROL: Key = { keysym: 0xffe3, code: 'ControlLeft' };
const ALT: Key = { keysym: 0xffe9, code: 'AltLeft' };
const SUPER: Key = { keysym: 0xffeb, code: 'MetaLeft' };
const TAB: Key = { keysym: 0xff09, code: 'Tab' };

/** Chords offered in the menu, in order. */
export const CHORDS: readonly { label: string; keys: readonly Key[] }[] = [
  { label: 'Ctrl + Alt + Del', keys: [CONTROL, ALT, { keysym: 0xffff, code: 'Delete' }] },
  { label: 'Alt + Tab', keys: [ALT, TAB] },
  { label: 'Alt + F4', keys: [ALT, { keysym: 0xffc1, code: 'F4' }] },
  { label: 'Ctrl + W', keys: [CONTROL, { keysym: 0x77, code: 'KeyW' }] },
  { label: 'Ctrl + T', keys: [CONTROL, { keysym: 0x74, code: 'KeyT' }] },
  { label: 'Super', keys: [SUPER] },
  { label: 'Escape', keys: [{ keysym: 0xff1b, code: 'Escape' }] },
  { label: 'Tab', keys: [TAB] },
  { label: 'F11', keys: [{ keysym: 0xffc8, code: 'F11' }] },
  { label: 'Print Screen', keys: [{ keysym: 0xff61, code: 'PrintScreen' }] },
];

/** The key that types one character. Latin-1 keysyms equal the code point; the rest of Unicode has an offset. */
export function keyFor(character: string): Key {
  const point = character.codePointAt(0) ?? 0;
  switch (character) {
    case '\n':
    case '\r':
      return { keysym: 0xff0d, code: 'Enter' };
    case '\t':
      return TAB;
    case '\b':
      return { keysym: 0xff08, code: 'Backspace' };
    default:
      return { keysym: point <= 0xff ? point : 0x0100_0000 + point, code: null };
  }
}
