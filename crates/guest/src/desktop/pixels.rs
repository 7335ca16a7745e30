//! From what the X server stores to what is sent: 32-bit pixels to three bytes each.
//!
//! Under emulation every instruction of this loop is translated, so it works on whole words: four pixels in,
//! three words out, no branches and no vectors (which an emulator handles lane by lane).

/// Appends `pixels` (blue, green, red and a byte of padding each) as red, green, blue. An incomplete last
/// pixel is left out.
pub(super) fn append_rgb(pixels: &[u8], rgb: &mut Vec<u8>) {
    rgb.reserve(pixels.len() / 4 * 3);
    let (blocks, rest) = pixels.as_chunks::<16>();
    let start = rgb.len();
    rgb.resize(start + blocks.len() * 12, 0);
    let (packed, _) = rgb[start..].as_chunks_mut::<12>();
    for (block, packed) in blocks.iter().zip(packed) {
        let low = u64::from_le_bytes([
            block[0], block[1], block[2], block[3], block[4], block[5], block[6], block[7],
        ]);
        let high = u64::from_le_bytes([
            block[8], block[9], block[10], block[11], block[12], block[13], block[14], block[15],
        ]);
        // Red, green, blue from the lowest byte up, two pixels in the lower 48 bits.
        let [first, second] = [low, high].map(two_pixels);
        packed[..8].copy_from_slice(&(first | second << 48).to_le_bytes());
        packed[8..].copy_from_slice(&(second >> 16).to_le_bytes()[..4]);
    }
    for pixel in rest.as_chunks::<4>().0 {
        rgb.extend([pixel[2], pixel[1], pixel[0]]);
    }
}

/// `0xRRGGBB` in each half becomes two times blue, green, red from the highest byte down.
fn two_pixels(pixels: u64) -> u64 {
    // Swapping all eight bytes also swaps the two halves.
    let swapped = pixels.swap_bytes();
    (swapped >> 40) & 0xff_ffff | (swapped << 16) & 0xffff_ff00_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_padding_and_reorders() {
        for count in 0..20u8 {
            let pixels: Vec<u8> = (0..count).flat_map(|n| [n * 3, n * 3 + 1, n * 3 + 2, 0xee]).collect();
            let expected: Vec<u8> = (0..count).flat_map(|n| [n * 3 + 2, n * 3 + 1, n * 3]).collect();
            let mut rgb = vec![7];
            append_rgb(&pixels, &mut rgb);
            assert_eq!(rgb[0], 7);
            assert_eq!(rgb[1..], expected, "{count} pixels");
        }
    }
}
