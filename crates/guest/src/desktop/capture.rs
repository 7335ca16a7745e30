//! Reading the screen.
//!
//! The X server copies the pixels into memory it shares with the agent (MIT-SHM), which takes about as long
//! as a `memcpy`; the socket would need several times that. The memory is made by the agent, sealed so that
//! the server cannot shrink it under the reader, and kept between captures.

use std::{
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::{Mutex, PoisonError},
};

use roost_guest_proto::v1::Region;
use rustix::{
    fs::{MemfdFlags, SealFlags},
    mm::{MapFlags, ProtFlags},
};
use tonic::Status;
use x11rb::{
    connection::{Connection, RequestConnection},
    errors::ReplyError,
    protocol::{
        shm::{self, ConnectionExt as _},
        xfixes::{self, ConnectionExt as _},
        xproto::{ConnectionExt as _, Drawable, ImageFormat, ImageOrder, VisualClass},
    },
    rust_connection::RustConnection,
};

use super::{
    display::{Display, DisplayError, id_error},
    pixels::append_rgb,
};

const BYTES_PER_PIXEL: usize = 4;
/// The screen may change its size between the question for it and the capture.
const ATTEMPTS: usize = 3;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    #[error("the region lies outside the screen, which is {width}x{height}")]
    Outside { width: u16, height: u16 },
    #[error("the screen's pixels are not 8 bits of red, green and blue in 32")]
    Format,
    #[error("share memory with the X server: {0}")]
    Memory(rustix::io::Errno),
}

impl From<CaptureError> for Status {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::Outside { .. } => Status::invalid_argument(error.to_string()),
            CaptureError::Format => Status::unimplemented(error.to_string()),
            CaptureError::Memory(_) => Status::resource_exhausted(error.to_string()),
        }
    }
}

/// Pixels as rows of red, green, blue.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) rgb: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Area {
    x: i16,
    y: i16,
    width: u16,
    height: u16,
}

/// The part of a region that is on the screen.
fn clip(region: Option<Region>, width: u16, height: u16) -> Option<Area> {
    let Some(region) = region else { return Some(Area { x: 0, y: 0, width, height }) };
    let range = |start: i32, length: u32, limit: u16| -> Option<(i16, u16)> {
        let start = i64::from(start);
        let end = (start + i64::from(length)).min(i64::from(limit));
        let start = start.max(0);
        let length = u16::try_from(end - start).ok().filter(|length| *length > 0)?;
        Some((i16::try_from(start).ok()?, length))
    };
    let (x, width) = range(region.x, region.width, width)?;
    let (y, height) = range(region.y, region.height, height)?;
    Some(Area { x, y, width, height })
}

#[derive(Debug, Default)]
pub(super) struct Capturer {
    shared: Mutex<Option<Shared>>,
}

impl Capturer {
    pub(super) fn new(display: &Display) -> Result<Self, DisplayError> {
        let connection = &display.connection;
        if connection.extension_information(shm::X11_EXTENSION_NAME)?.is_none() {
            return Err(DisplayError::Lacks("the MIT-SHM extension"));
        }
        let version = connection.shm_query_version()?.reply()?;
        if (version.major_version, version.minor_version) < (1, 2) {
            return Err(DisplayError::Lacks("MIT-SHM 1.2 (shared memory by descriptor)"));
        }
        // For the pointer's image; a client says which version it speaks before it asks anything.
        if connection.extension_information(xfixes::X11_EXTENSION_NAME)?.is_none() {
            return Err(DisplayError::Lacks("the XFIXES extension"));
        }
        connection.xfixes_query_version(2, 0)?.reply()?;
        Ok(Self::default())
    }

    pub(super) fn capture(
        &self,
        display: &Display,
        region: Option<Region>,
        cursor: bool,
    ) -> Result<Image, DisplayError> {
        check_format(display)?;
        let mut attempt = 1;
        loop {
            let screen = display.connection.get_geometry(display.root)?.reply()?;
            let (width, height) = (screen.width, screen.height);
            let area = clip(region, width, height).ok_or(CaptureError::Outside { width, height })?;
            match self.grab(display, area) {
                Err(DisplayError::Request(ReplyError::X11Error(_))) if attempt < ATTEMPTS => attempt += 1,
                Ok(mut image) if cursor => {
                    draw_cursor(display, area, &mut image)?;
                    return Ok(image);
                }
                result => return result,
            }
        }
    }

    fn grab(&self, display: &Display, area: Area) -> Result<Image, DisplayError> {
        let Area { x, y, width, height } = area;
        let size = usize::from(width) * usize::from(height) * BYTES_PER_PIXEL;
        // A panic under this lock leaves at worst no memory behind.
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.as_ref().is_none_or(|shared| shared.size < size) {
            if let Some(old) = shared.take() {
                display.connection.shm_detach(old.segment)?;
            }
            *shared = Some(Shared::attach(&display.connection, size)?);
        }
        let Some(memory) = shared.as_mut() else { return Err(CaptureError::Format.into()) };
        let reply = display
            .connection
            .shm_get_image(
                Drawable::from(display.root),
                x,
                y,
                width,
                height,
                u32::MAX,
                ImageFormat::Z_PIXMAP.into(),
                memory.segment,
                0,
            )?
            .reply()?;
        if usize::try_from(reply.size).ok() != Some(size) {
            return Err(CaptureError::Format.into());
        }
        let mut rgb = Vec::with_capacity(size / BYTES_PER_PIXEL * 3);
        append_rgb(&memory.bytes()[..size], &mut rgb);
        Ok(Image { width: width.into(), height: height.into(), rgb })
    }
}

/// The pointer's image over the picture of an area.
fn draw_cursor(display: &Display, area: Area, image: &mut Image) -> Result<(), DisplayError> {
    let cursor = display.connection.xfixes_get_cursor_image()?.reply()?;
    let left = i32::from(cursor.x) - i32::from(cursor.xhot) - i32::from(area.x);
    let top = i32::from(cursor.y) - i32::from(cursor.yhot) - i32::from(area.y);
    overlay(image, left, top, cursor.width.into(), &cursor.cursor_image);
    Ok(())
}

/// Pixels are 0xAARRGGBB, multiplied by their alpha already.
fn overlay(image: &mut Image, left: i32, top: i32, width: usize, pixels: &[u32]) {
    for (row, line) in (top..).zip(pixels.chunks_exact(width.max(1))) {
        for (column, pixel) in (left..).zip(line) {
            let (Ok(x), Ok(y)) = (u32::try_from(column), u32::try_from(row)) else { continue };
            if x >= image.width || y >= image.height {
                continue;
            }
            let [blue, green, red, alpha] = pixel.to_le_bytes();
            let start = (y as usize * image.width as usize + x as usize) * 3;
            for (under, over) in image.rgb[start..start + 3].iter_mut().zip([red, green, blue]) {
                let kept = u16::from(*under) * (255 - u16::from(alpha)) / 255;
                *under = over.saturating_add(u8::try_from(kept).unwrap_or(u8::MAX));
            }
        }
    }
}

/// Every server we run is of this kind; another would need a conversion nobody could test.
fn check_format(display: &Display) -> Result<(), CaptureError> {
    let setup = display.connection.setup();
    let depth = display.screen.root_depth;
    let bits =
        setup.pixmap_formats.iter().find(|format| format.depth == depth).map(|format| format.bits_per_pixel);
    let visual = display
        .screen
        .allowed_depths
        .iter()
        .flat_map(|depth| &depth.visuals)
        .find(|visual| visual.visual_id == display.screen.root_visual);
    let known = visual.is_some_and(|visual| {
        visual.class == VisualClass::TRUE_COLOR
            && (visual.red_mask, visual.green_mask, visual.blue_mask) == (0xff_0000, 0xff00, 0xff)
    });
    if known && bits == Some(32) && setup.image_byte_order == ImageOrder::LSB_FIRST {
        Ok(())
    } else {
        Err(CaptureError::Format)
    }
}

/// Memory that the X server writes and the agent reads.
#[derive(Debug)]
struct Shared {
    segment: shm::Seg,
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `Shared` is its only user.
unsafe impl Send for Shared {}

impl Shared {
    fn attach(connection: &RustConnection, size: usize) -> Result<Self, DisplayError> {
        let (memory, start) = allocate(size).map_err(CaptureError::Memory)?;
        // From here on dropped, and so unmapped, if the server refuses.
        let shared = Self { segment: connection.generate_id().map_err(id_error)?, start, size };
        connection.shm_attach_fd(shared.segment, memory, false)?.check()?;
        Ok(shared)
    }

    fn bytes(&mut self) -> &[u8] {
        // SAFETY: the mapping is `size` bytes long and lives until drop; its seals keep the file that long.
        // The server writes only while it answers a capture, and captures wait for the answer under a lock
        // before they read; a server that writes at other times spoils only the picture.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `allocate`, and the last use of it.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.size) } {
            tracing::error!(%error, "unmap the memory shared with the X server");
        }
    }
}

fn allocate(size: usize) -> rustix::io::Result<(OwnedFd, NonNull<u8>)> {
    let memory = rustix::fs::memfd_create(c"roost-screen", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&memory, u64::try_from(size).map_err(|_| rustix::io::Errno::INVAL)?)?;
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let start = unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), size, ProtFlags::READ, MapFlags::SHARED, &memory, 0)?
    };
    match NonNull::new(start.cast()) {
        Some(start) => Ok((memory, start)),
        None => Err(rustix::io::Errno::NOMEM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pointer_lies_over_the_picture_and_is_cut_at_its_edges() {
        let mut image = Image { width: 2, height: 2, rgb: vec![100; 12] };
        // Opaque red, nothing; half of black, opaque blue. Only the last one is on the picture at (0, 0).
        let pixels = [0xffff_0000, 0, 0x8000_0000, 0xff00_00ff];
        overlay(&mut image, -1, -1, 2, &pixels);
        assert_eq!(image.rgb[..3], [0, 0, 255]);
        assert_eq!(image.rgb[3..], [100; 9]);
        overlay(&mut image, 1, 0, 2, &pixels);
        assert_eq!(image.rgb[3..6], [255, 0, 0]);
        assert_eq!(image.rgb[9..], [49, 49, 49]);
        overlay(&mut image, 5, 5, 0, &[]);
    }

    #[test]
    fn regions_are_clipped_to_the_screen() {
        let region = |x, y, width, height| clip(Some(Region { x, y, width, height }), 100, 50);
        let area = |x, y, width, height| Some(Area { x, y, width, height });
        assert_eq!(clip(None, 100, 50), area(0, 0, 100, 50));
        assert_eq!(region(10, 20, 30, 10), area(10, 20, 30, 10));
        assert_eq!(region(-5, -5, 10, 10), area(0, 0, 5, 5));
        assert_eq!(region(90, 40, u32::MAX, u32::MAX), area(90, 40, 10, 10));
        assert_eq!(region(i32::MIN, 0, u32::MAX, 10), area(0, 0, 100, 10));
        for nothing in [(100, 0, 1, 1), (0, 50, 1, 1), (-1, 0, 1, 1), (0, 0, 0, 1), (i32::MAX, 0, 9, 9)] {
            assert_eq!(region(nothing.0, nothing.1, nothing.2, nothing.3), None, "{nothing:?}");
        }
    }
}
