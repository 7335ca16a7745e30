//! Terminals that stay when nobody looks.
//!
//! A session is a program on a terminal, with two tasks of its own: one reads what the program shows
//! ([`session`]), one hears its end. Viewers come and go. A session ends with its program, when it is closed, and
//! when nobody has watched it for [`session::UNWATCHED`].

mod screen;
mod session;
mod translate;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roost_guest_proto::v1::{
    AttachInput, AttachOutput, AttachStart, CloseSessionReply, CloseSessionRequest, ListSessionsReply,
    ListSessionsRequest, OpenSessionRequest, ResizeSessionReply, ResizeSessionRequest, SessionInfo,
    attach_input::Input, terminal_server::Terminal,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::session::{Session, Shown};
use crate::process::{Asked, Commands, Size, Streams};

/// Each holds a program and some megabytes.
const MOST_SESSIONS: usize = 32;
const QUEUED_OUTPUTS: usize = 4;
const DEFAULT_SIZE: Size = Size { rows: 24, columns: 80 };

/// The sessions there are, the oldest first.
#[derive(Debug, Clone, Default)]
struct Sessions(Arc<Mutex<Vec<Arc<Session>>>>);

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Result<Arc<Session>, Status> {
        let found = self.lock().iter().find(|session| session.id == id).cloned();
        found.ok_or_else(|| {
            Status::not_found(format!("there is no terminal session `{id}`; it may have ended"))
        })
    }

    fn forget(&self, id: &str) {
        self.lock().retain(|session| session.id != id);
    }
}

#[derive(Debug)]
pub(crate) struct TerminalService {
    commands: Commands,
    sessions: Sessions,
}

impl TerminalService {
    pub(crate) fn new(commands: Commands) -> Self {
        Self { commands, sessions: Sessions::default() }
    }
}

#[tonic::async_trait]
impl Terminal for TerminalService {
    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<SessionInfo>, Status> {
        let OpenSessionRequest { size, argv, cwd, env, user } = request.into_inner();
        let size = size.map_or(Ok(DEFAULT_SIZE), Size::try_from)?;
        let launch = self.commands.prepare(Asked { argv, cwd, env, user }, Streams::Terminal(size))?;
        let mut sessions = self.sessions.lock();
        if sessions.len() >= MOST_SESSIONS {
            return Err(Status::resource_exhausted(format!(
                "there are {MOST_SESSIONS} terminal sessions on this computer already; close one first"
            )));
        }
        let (session, life) = Session::start(launch, size)?;
        sessions.push(session.clone());
        drop(sessions);
        let (table, id) = (self.sessions.clone(), session.id.clone());
        let info = session.info();
        tokio::spawn(async move {
            session.live(life, || table.forget(&id)).await;
        });
        Ok(Response::new(info))
    }

    async fn list_sessions(
        &self,
        _: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsReply>, Status> {
        let sessions = self.sessions.lock().iter().map(|session| session.info()).collect();
        Ok(Response::new(ListSessionsReply { sessions }))
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionReply>, Status> {
        let session = self.sessions.find(&request.into_inner().id)?;
        self.sessions.forget(&session.id);
        session.close();
        Ok(Response::new(CloseSessionReply {}))
    }

    async fn resize_session(
        &self,
        request: Request<ResizeSessionRequest>,
    ) -> Result<Response<ResizeSessionReply>, Status> {
        let ResizeSessionRequest { id, size } = request.into_inner();
        let size = size.ok_or_else(|| Status::invalid_argument("a resize needs a size"))?.try_into()?;
        self.sessions.find(&id)?.resize(size)?;
        Ok(Response::new(ResizeSessionReply {}))
    }

    type AttachStream = ReceiverStream<Result<AttachOutput, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachInput>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut input = request.into_inner();
        let AttachStart { id, size } = match input.message().await? {
            Some(AttachInput { input: Some(Input::Attach(start)) }) => start,
            _ => return Err(Status::invalid_argument("the first input must name the session")),
        };
        let session = self.sessions.find(&id)?;
        if let Some(size) = size {
            session.resize(size.try_into()?)?;
        }
        let (output, outputs) = mpsc::channel(QUEUED_OUTPUTS);
        tokio::spawn(attended(session, input, output));
        Ok(Response::new(ReceiverStream::new(outputs)))
    }
}

/// One viewer, until it goes, the session ends, or it says something that makes no sense.
async fn attended(
    session: Arc<Session>,
    input: Streaming<AttachInput>,
    output: mpsc::Sender<Result<AttachOutput, Status>>,
) {
    let failed = tokio::select! {
        () = show(&session, &output) => None,
        refused = hear(&session, input) => Some(refused),
    };
    if let Some(status) = failed {
        // A viewer that is gone does not read why.
        let _gone = output.send(Err(status)).await;
    }
}

async fn show(session: &Session, output: &mpsc::Sender<Result<AttachOutput, Status>>) {
    let mut viewer = session.enter();
    loop {
        let shown = tokio::select! {
            shown = viewer.next() => shown,
            () = output.closed() => return,
        };
        let is_last = matches!(shown, Shown::Exit(_));
        if output.send(Ok(shown.into())).await.is_err() || is_last {
            return;
        }
    }
}

/// Ends only with an error: a viewer that has nothing more to type may still look.
async fn hear(session: &Session, mut input: Streaming<AttachInput>) -> Status {
    loop {
        let heard = match input.message().await {
            Ok(Some(AttachInput { input })) => input,
            Ok(None) => return std::future::pending().await,
            Err(status) => return status,
        };
        let outcome = match heard {
            Some(Input::Data(data)) => {
                session.press(data).await;
                Ok(())
            }
            Some(Input::Resize(size)) => size.try_into().and_then(|size| session.resize(size)),
            Some(Input::Attach(_)) => Err(Status::invalid_argument("a viewer attaches only once")),
            None => Err(Status::invalid_argument("an input of an unknown kind")),
        };
        if let Err(status) = outcome {
            return status;
        }
    }
}
