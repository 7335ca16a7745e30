//! The desktop of the computer: its pixels, its pointer, its keyboard, its windows, its clipboard.

mod capture;
mod clipboard;
pub(crate) mod display;
pub(crate) mod events;
mod input;
mod keyboard;
mod keysym;
mod pixels;
pub(crate) mod readiness;
mod resize;
mod watch;
mod windows;

use std::{os::fd::OwnedFd, path::PathBuf, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use roost_guest_proto::v1::{
    CaptureReply, CaptureRequest, ChangeWindowReply, ChangeWindowRequest, CursorReply, CursorRequest,
    InputReply, InputRequest, ReadClipboardReply, ReadClipboardRequest, ScreenReply, ScreenRequest,
    SetScreenSizeReply, SetScreenSizeRequest, WatchScreenReply, WatchScreenRequest, WindowsReply,
    WindowsRequest, WriteClipboardReply, WriteClipboardRequest, desktop_server::Desktop,
};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use x11rb::protocol::xproto::ConnectionExt as _;

use self::{
    capture::Capturer,
    display::{Display, DisplayAddress, DisplayError, DisplayHandle},
    input::{Hands, Turn},
    readiness::Readiness,
    watch::{Watch, while_heard},
    windows::Windows,
};
use crate::system::blocking;

const PIECE: usize = 256 * 1024;
/// Each capture in progress holds a picture until the host has read it.
const CAPTURES: usize = 8;

/// One connection to the X server and what belongs to it.
#[derive(Debug)]
struct Session {
    display: Display,
    capturer: Capturer,
    hands: Hands,
    windows: Windows,
}

impl Session {
    fn new(display: Display) -> Result<Self, DisplayError> {
        Ok(Self {
            capturer: Capturer::new(&display)?,
            hands: Hands::new(&display)?,
            windows: Windows::new(&display)?,
            display,
        })
    }
}

#[derive(Debug)]
pub(crate) struct DesktopService {
    handle: Arc<DisplayHandle<Session>>,
    captures: Arc<Semaphore>,
    turn: Turn,
    /// Where the size of the screen is kept for the next start of the X server.
    screen_file: Arc<Mutex<PathBuf>>,
}

impl DesktopService {
    pub(crate) fn new(address: DisplayAddress, readiness: Readiness, screen_file: PathBuf) -> Self {
        Self {
            screen_file: Arc::new(Mutex::new(screen_file)),
            handle: Arc::new(DisplayHandle::new(address, readiness, Session::new)),
            captures: Arc::new(Semaphore::new(CAPTURES)),
            turn: Turn::default(),
        }
    }

    async fn with<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Session) -> Result<R, DisplayError> + Send + 'static,
    ) -> Result<R, Status> {
        let handle = self.handle.clone();
        blocking(move || handle.with(|session| work(session))).await
    }
}

#[tonic::async_trait]
impl Desktop for DesktopService {
    async fn screen(&self, _: Request<ScreenRequest>) -> Result<Response<ScreenReply>, Status> {
        let display = self.handle.address().name();
        let reply = self
            .with(|session| {
                let Display { connection, root, .. } = &session.display;
                let screen = connection.get_geometry(*root)?.reply()?;
                Ok(ScreenReply {
                    width: screen.width.into(),
                    height: screen.height.into(),
                    depth: screen.depth.into(),
                    display,
                    window_manager: session.windows.manager(&session.display)?.unwrap_or_default(),
                })
            })
            .await?;
        Ok(Response::new(reply))
    }

    async fn set_screen_size(
        &self,
        request: Request<SetScreenSizeRequest>,
    ) -> Result<Response<SetScreenSizeReply>, Status> {
        let (request, handle) = (request.into_inner(), self.handle.clone());
        // One after the other, so that what is kept is what is shown.
        let file = self.screen_file.clone().lock_owned().await;
        blocking(move || resize::resize(&handle.another()?, request, &file)).await?;
        Ok(Response::new(SetScreenSizeReply {}))
    }

    async fn cursor(&self, _: Request<CursorRequest>) -> Result<Response<CursorReply>, Status> {
        let reply = self
            .with(|session| {
                let Display { connection, root, .. } = &session.display;
                let pointer = connection.query_pointer(*root)?.reply()?;
                Ok(CursorReply { x: pointer.root_x.into(), y: pointer.root_y.into() })
            })
            .await?;
        Ok(Response::new(reply))
    }

    type CaptureStream = Pin<Box<dyn Stream<Item = Result<CaptureReply, Status>> + Send>>;

    async fn capture(
        &self,
        request: Request<CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        let CaptureRequest { region, cursor } = request.into_inner();
        let place = match self.captures.clone().acquire_owned().await {
            Ok(place) => place,
            Err(closed) => return Err(Status::internal(closed.to_string())),
        };
        let image =
            self.with(move |session| session.capturer.capture(&session.display, region, cursor)).await?;
        let size = CaptureReply { width: image.width, height: image.height, rgb: Bytes::new() };
        // One buffer for the whole picture; the pieces are views of it.
        let pieces = stream::unfold((Bytes::from(image.rgb), place), |(mut rest, place)| async move {
            if rest.is_empty() {
                return None;
            }
            let rgb = rest.split_to(rest.len().min(PIECE));
            Some((Ok(CaptureReply { width: 0, height: 0, rgb }), (rest, place)))
        });
        Ok(Response::new(Box::pin(stream::StreamExt::chain(
            stream::once(std::future::ready(Ok(size))),
            pieces,
        ))))
    }

    async fn input(&self, request: Request<InputRequest>) -> Result<Response<InputReply>, Status> {
        let steps = input::check(request.into_inner())?;
        // Whoever drops the call stops the actions, but not before what is held down is let go.
        let stop = CancellationToken::new();
        let _stopper = stop.clone().drop_guard();
        let work = input::perform(self.handle.clone(), self.turn.clone(), steps, stop);
        match tokio::spawn(work).await {
            Ok(result) => result.map(|()| Response::new(InputReply {})),
            Err(panic) => Err(Status::internal(format!("the agent failed: {panic}"))),
        }
    }

    async fn windows(&self, _: Request<WindowsRequest>) -> Result<Response<WindowsReply>, Status> {
        let windows = self.with(|session| session.windows.list(&session.display)).await?;
        Ok(Response::new(WindowsReply { windows }))
    }

    async fn change_window(
        &self,
        request: Request<ChangeWindowRequest>,
    ) -> Result<Response<ChangeWindowReply>, Status> {
        let ChangeWindowRequest { id, change } = request.into_inner();
        let handle = self.handle.clone();
        let work = move || {
            let display = handle.another()?;
            Windows::new(&display)?.change(&display, id, change)
        };
        blocking(work).await?;
        Ok(Response::new(ChangeWindowReply {}))
    }

    type WatchScreenStream = ReceiverStream<Result<WatchScreenReply, Status>>;

    async fn watch_screen(
        &self,
        request: Request<WatchScreenRequest>,
    ) -> Result<Response<Self::WatchScreenStream>, Status> {
        let watch = Watch::new(request.into_inner())?;
        // Two: it begins, it ends.
        let (output, outputs) = mpsc::channel(2);
        let (handle, begun) = (self.handle.clone(), output.clone());
        let work = move |pipe: &OwnedFd| {
            // Fails when the call is gone, and then the pipe is closed, too.
            let begun = || drop(begun.try_send(Ok(WatchScreenReply { reached: false })));
            watch.wait(&handle.another()?, begun, pipe)
        };
        while_heard(output, work, |result| Some(result.map(|reached| WatchScreenReply { reached })))?;
        Ok(Response::new(ReceiverStream::new(outputs)))
    }

    async fn read_clipboard(
        &self,
        _: Request<ReadClipboardRequest>,
    ) -> Result<Response<ReadClipboardReply>, Status> {
        let handle = self.handle.clone();
        let text = blocking(move || clipboard::read(handle.another()?)).await?;
        Ok(Response::new(ReadClipboardReply { text }))
    }

    async fn write_clipboard(
        &self,
        request: Request<WriteClipboardRequest>,
    ) -> Result<Response<WriteClipboardReply>, Status> {
        let handle = self.handle.clone();
        let text = request.into_inner().text;
        blocking(move || clipboard::write(handle.another()?, text)).await?;
        Ok(Response::new(WriteClipboardReply {}))
    }
}
