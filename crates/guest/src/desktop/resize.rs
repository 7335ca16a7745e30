//! The size of the screen, through RandR; and for the next start of the X server, through a file that its service reads.

use std::path::Path;

use roost_guest_proto::v1::SetScreenSizeRequest;
use tonic::Status;
use x11rb::{
    connection::{Connection, RequestConnection},
    protocol::{
        randr::{self, ConnectionExt as _, ModeInfo, Rotation, SetConfig},
        xproto::ConnectionExt as _,
    },
};

use super::display::{Display, DisplayError};

/// What the service of the X server reads.
const VARIABLE: &str = "ROOST_SCREEN";
const REFRESH_HZ: u32 = 60;
const PIXELS_PER_INCH: u32 = 96;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ResizeError {
    #[error(
        "a screen of {width}x{height} pixels is not possible: {least_width}x{least_height} to {most_width}x{most_height}"
    )]
    Size { width: u32, height: u32, least_width: u16, least_height: u16, most_width: u16, most_height: u16 },
    #[error("the X server did not change its size: {0:?}")]
    Refused(SetConfig),
    #[error("keep the size of the screen for the next start: {0}")]
    Keep(std::io::Error),
}

impl From<ResizeError> for Status {
    fn from(error: ResizeError) -> Self {
        match error {
            ResizeError::Size { .. } => Status::invalid_argument(error.to_string()),
            ResizeError::Refused(_) => Status::aborted(error.to_string()),
            ResizeError::Keep(_) => Status::resource_exhausted(error.to_string()),
        }
    }
}

/// Kept first: a size that is not kept is not taken.
pub(super) fn resize(
    display: &Display,
    request: SetScreenSizeRequest,
    file: &Path,
) -> Result<(), DisplayError> {
    let connection = &display.connection;
    if connection.extension_information(randr::X11_EXTENSION_NAME)?.is_none() {
        return Err(DisplayError::Lacks("the RANDR extension"));
    }
    connection.randr_query_version(1, 3)?.reply()?;
    let range = connection.randr_get_screen_size_range(display.root)?.reply()?;
    let fits = |size: u32, least: u16, most: u16| {
        u16::try_from(size).ok().filter(|size| (least..=most).contains(size))
    };
    let SetScreenSizeRequest { width, height } = request;
    let size =
        fits(width, range.min_width, range.max_width).zip(fits(height, range.min_height, range.max_height));
    let (width, height) = size.ok_or(ResizeError::Size {
        width,
        height,
        least_width: range.min_width,
        least_height: range.min_height,
        most_width: range.max_width,
        most_height: range.max_height,
    })?;
    keep(file, width, height).map_err(ResizeError::Keep)?;
    let now = connection.get_geometry(display.root)?.reply()?;
    if (now.width, now.height) == (width, height) {
        return Ok(());
    }
    let mode = mode(display, width, height)?;
    let resources = connection.randr_get_screen_resources_current(display.root)?.reply()?;
    let (Some(crtc), Some(output)) = (resources.crtcs.first(), resources.outputs.first()) else {
        return Err(DisplayError::Lacks("an output of RANDR"));
    };
    connection.randr_add_output_mode(*output, mode)?.check()?;
    // Programs see the whole change or nothing of it. The screen holds what is shown at every moment of it.
    connection.grab_server()?;
    let changed = || -> Result<SetConfig, DisplayError> {
        set_screen(display, width.max(now.width), height.max(now.height))?;
        let time = x11rb::CURRENT_TIME;
        let (place, turned) = ((0, 0), Rotation::ROTATE0);
        let set = connection
            .randr_set_crtc_config(
                *crtc,
                time,
                resources.config_timestamp,
                place.0,
                place.1,
                mode,
                turned,
                &[*output],
            )?
            .reply()?;
        set_screen(display, width, height)?;
        Ok(set.status)
    };
    let changed = changed();
    connection.ungrab_server()?;
    connection.flush()?;
    match changed? {
        SetConfig::SUCCESS => Ok(()),
        other => Err(ResizeError::Refused(other).into()),
    }
}

fn set_screen(display: &Display, width: u16, height: u16) -> Result<(), DisplayError> {
    let millimetres = |pixels: u16| u32::from(pixels) * 254 / (PIXELS_PER_INCH * 10);
    let (mm_width, mm_height) = (millimetres(width), millimetres(height));
    display.connection.randr_set_screen_size(display.root, width, height, mm_width, mm_height)?.check()?;
    Ok(())
}

/// The mode of this size, made where there is none.
fn mode(display: &Display, width: u16, height: u16) -> Result<randr::Mode, DisplayError> {
    let connection = &display.connection;
    let resources = connection.randr_get_screen_resources_current(display.root)?.reply()?;
    if let Some(mode) = resources.modes.iter().find(|mode| (mode.width, mode.height) == (width, height)) {
        return Ok(mode.id);
    }
    let name = format!("{width}x{height}");
    let info = ModeInfo {
        id: 0,
        width,
        height,
        dot_clock: u32::from(width) * u32::from(height) * REFRESH_HZ,
        hsync_start: width,
        hsync_end: width,
        htotal: width,
        hskew: 0,
        vsync_start: height,
        vsync_end: height,
        vtotal: height,
        name_len: u16::try_from(name.len()).unwrap_or(0),
        mode_flags: randr::ModeFlag::from(0_u32),
    };
    Ok(connection.randr_create_mode(display.root, info, name.as_bytes())?.reply()?.mode)
}

/// Old or new, never half.
fn keep(file: &Path, width: u16, height: u16) -> std::io::Result<()> {
    let unfinished = file.with_extension("new");
    std::fs::write(&unfinished, format!("{VARIABLE}={width}x{height}\n"))?;
    std::fs::File::open(&unfinished)?.sync_all()?;
    std::fs::rename(unfinished, file)
}
