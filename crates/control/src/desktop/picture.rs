//! Pictures of the screen. The guest sends pixels; everything else is done here, where the CPU is not emulated.

use bytes::Bytes;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{PixelType, Resizer};
use roost_api::{ApiError, ComputerId, ErrorCode, PictureFormat, PictureQuery, ScreenRegion};
use roost_guest_proto::v1::{CaptureRequest, Region};

use crate::{Control, Failure};

/// The largest picture a guest may send: 8K in RGB. The guest is not trusted to be reasonable.
const MOST_PIXELS: usize = 7680 * 4320;
const DEFAULT_QUALITY: u8 = 80;
const SMALLEST_SCALE: f64 = 0.1;

/// A picture as it is sent.
#[derive(Debug, Clone)]
pub struct Picture {
    pub bytes: Bytes,
    pub media_type: &'static str,
}

/// How a picture is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Encoding {
    Png,
    Jpeg { quality: u8 },
    Webp,
}

#[derive(Debug, thiserror::Error)]
enum EncodeError {
    #[error("PNG: {0}")]
    Png(#[from] png::EncodingError),
    #[error("JPEG: {0}")]
    Jpeg(#[from] jpeg_encoder::EncodingError),
    #[error("JPEG holds at most 65535 pixels a side")]
    JpegSize(#[from] std::num::TryFromIntError),
    #[error("WebP: {0}")]
    Webp(#[from] image_webp::EncodingError),
    #[error("scale: {0}")]
    Buffer(#[from] fast_image_resize::ImageBufferError),
    #[error("scale: {0}")]
    Resize(#[from] fast_image_resize::ResizeError),
}

/// Rows of red, green, blue.
struct Pixels {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

impl Control {
    /// The screen, or a part of it.
    pub async fn screenshot(
        &self,
        id: ComputerId,
        region: Option<ScreenRegion>,
        query: PictureQuery,
    ) -> Result<Picture, Failure> {
        let encoding = encoding(&query)?;
        let scale = scale(&query)?;
        let pixels = self.pixels(id, region, query.cursor.unwrap_or_default()).await?;
        let encoded = tokio::task::spawn_blocking(move || encode(scaled(pixels, scale)?, encoding)).await;
        let bytes = encoded.map_err(Failure::internal)?.map_err(Failure::internal)?.into();
        let media_type = match encoding {
            Encoding::Png => "image/png",
            Encoding::Jpeg { .. } => "image/jpeg",
            Encoding::Webp => "image/webp",
        };
        Ok(Picture { bytes, media_type })
    }

    async fn pixels(
        &self,
        id: ComputerId,
        region: Option<ScreenRegion>,
        cursor: bool,
    ) -> Result<Pixels, Failure> {
        let mut client = self.desktop(id).await?;
        let region = region.map(|ScreenRegion { x, y, width, height }| Region { x, y, width, height });
        let request = CaptureRequest { region, cursor };
        let mut stream = client.capture(request).await.map_err(Failure::from_guest)?.into_inner();
        let (mut width, mut height, mut rgb, mut expected) = (0, 0, Vec::new(), None);
        while let Some(piece) = stream.message().await.map_err(Failure::from_guest)? {
            if expected.is_none() {
                (width, height) = (piece.width, piece.height);
                let count = usize::try_from(u64::from(width) * u64::from(height)).unwrap_or(usize::MAX);
                if count == 0 || count > MOST_PIXELS {
                    return Err(broken_picture(format!("a screen of {width}x{height}")));
                }
                rgb.reserve_exact(count * 3);
                expected = Some(count * 3);
            }
            rgb.extend_from_slice(&piece.rgb);
            if expected.is_some_and(|expected| rgb.len() > expected) {
                return Err(broken_picture("more pixels than the screen has".to_owned()));
            }
        }
        if expected != Some(rgb.len()) {
            return Err(broken_picture(format!("{} bytes for {width}x{height}", rgb.len())));
        }
        Ok(Pixels { width, height, rgb })
    }
}

/// Before anything is done for it.
pub(super) fn check(query: &PictureQuery) -> Result<(), ApiError> {
    encoding(query)?;
    scale(query)?;
    Ok(())
}

fn encoding(query: &PictureQuery) -> Result<Encoding, ApiError> {
    let format = query.format.unwrap_or_default();
    match (format, query.quality) {
        (PictureFormat::Jpeg, None) => Ok(Encoding::Jpeg { quality: DEFAULT_QUALITY }),
        (PictureFormat::Jpeg, Some(quality @ 1..=100)) => Ok(Encoding::Jpeg { quality }),
        (PictureFormat::Jpeg, Some(_)) => Err(ApiError::field("quality", "not between 1 and 100")),
        (PictureFormat::Png | PictureFormat::Webp, Some(_)) => {
            Err(ApiError::field("quality", "only JPEG has one; add format=jpeg, or leave it out"))
        }
        (PictureFormat::Png, None) => Ok(Encoding::Png),
        (PictureFormat::Webp, None) => Ok(Encoding::Webp),
    }
}

fn scale(query: &PictureQuery) -> Result<f64, ApiError> {
    let scale = query.scale.unwrap_or(1.0);
    if (SMALLEST_SCALE..=1.0).contains(&scale) {
        Ok(scale)
    } else {
        Err(ApiError::field("scale", "not between 0.1 and 1"))
    }
}

fn scaled(pixels: Pixels, scale: f64) -> Result<Pixels, EncodeError> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the scale is at most 1, so it is at most the side"
    )]
    let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
    let (width, height) = (side(pixels.width), side(pixels.height));
    if (width, height) == (pixels.width, pixels.height) {
        return Ok(pixels);
    }
    let from = ImageRef::new(pixels.width, pixels.height, &pixels.rgb, PixelType::U8x3)?;
    let mut to = Image::new(width, height, PixelType::U8x3);
    Resizer::new().resize(&from, &mut to, None)?;
    Ok(Pixels { width, height, rgb: to.into_vec() })
}

fn encode(pixels: Pixels, encoding: Encoding) -> Result<Vec<u8>, EncodeError> {
    let Pixels { width, height, rgb } = pixels;
    let mut out = Vec::with_capacity(rgb.len() / 4);
    match encoding {
        Encoding::Png => {
            let mut encoder = png::Encoder::new(&mut out, width, height);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_depth(png::BitDepth::Eight);
            encoder.set_compression(png::Compression::Fastest);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&rgb)?;
            writer.finish()?;
        }
        Encoding::Jpeg { quality } => {
            let encoder = jpeg_encoder::Encoder::new(&mut out, quality);
            encoder.encode(&rgb, width.try_into()?, height.try_into()?, jpeg_encoder::ColorType::Rgb)?;
        }
        Encoding::Webp => {
            image_webp::WebPEncoder::new(&mut out).encode(
                &rgb,
                width,
                height,
                image_webp::ColorType::Rgb8,
            )?;
        }
    }
    Ok(out)
}

fn broken_picture(what: String) -> Failure {
    Failure::new(
        ErrorCode::AgentUnavailable,
        format!("the computer sent a broken picture: {what}; try again"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Left half red, right half blue.
    fn two_colors(width: u32, height: u32) -> Pixels {
        let row = |x: u32| if x < width / 2 { [255, 0, 0] } else { [0, 0, 255] };
        let rgb = (0..height).flat_map(|_| (0..width).flat_map(row)).collect();
        Pixels { width, height, rgb }
    }

    #[test]
    fn every_format_begins_as_its_readers_expect() {
        let encoded = |encoding| encode(two_colors(64, 32), encoding).unwrap();
        assert!(encoded(Encoding::Png).starts_with(b"\x89PNG"));
        let fine = encoded(Encoding::Jpeg { quality: 95 });
        let coarse = encoded(Encoding::Jpeg { quality: 5 });
        assert!(fine.starts_with(b"\xff\xd8\xff") && coarse.len() < fine.len());
        let webp = encoded(Encoding::Webp);
        let mut decoder = image_webp::WebPDecoder::new(std::io::Cursor::new(&webp)).unwrap();
        assert_eq!(decoder.dimensions(), (64, 32));
        let mut pixels = vec![0; decoder.output_buffer_size().unwrap()];
        decoder.read_image(&mut pixels).unwrap();
        assert_eq!(pixels, two_colors(64, 32).rgb);
    }

    #[test]
    fn a_smaller_picture_shows_the_same() {
        let small = scaled(two_colors(100, 50), 0.25).unwrap();
        assert_eq!((small.width, small.height, small.rgb.len()), (25, 13, 25 * 13 * 3));
        assert_eq!((small.rgb[..3].to_vec(), small.rgb[72..75].to_vec()), (vec![255, 0, 0], vec![0, 0, 255]));
        let same = scaled(two_colors(4, 4), 1.0).unwrap();
        assert_eq!(same.rgb, two_colors(4, 4).rgb);
        let least = scaled(two_colors(3, 1), 0.1).unwrap();
        assert_eq!((least.width, least.height), (1, 1));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let query = |format, quality, scale| PictureQuery { format, quality, scale, cursor: None };
        assert_eq!(encoding(&query(None, None, None)).unwrap(), Encoding::Png);
        let jpeg = Some(PictureFormat::Jpeg);
        assert_eq!(encoding(&query(jpeg, Some(30), None)).unwrap(), Encoding::Jpeg { quality: 30 });
        for (format, quality) in [(jpeg, 0), (jpeg, 101), (None, 80), (Some(PictureFormat::Webp), 80)] {
            encoding(&query(format, Some(quality), None)).unwrap_err();
        }
        for wrong in [0.0, 0.09, 1.1, -1.0, f64::NAN] {
            scale(&query(None, None, Some(wrong))).unwrap_err();
        }
    }
}
