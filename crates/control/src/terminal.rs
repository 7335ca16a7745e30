//! Terminals that stay: sessions of a computer's agent, and viewers of them.

use roost_api::{
    ComputerId, ErrorCode, OpenTerminal, ResizeTerminal, StreamTokenRequest, Terminal, TerminalClosed,
    TerminalList, TerminalResized, TerminalRow,
};
use roost_guest_proto::v1::attach_input::Input;
use roost_guest_proto::v1::terminal_client::TerminalClient;
use roost_guest_proto::v1::{
    AttachInput, AttachOutput, AttachStart, CloseSessionRequest, ListSessionsRequest, OpenSessionRequest,
    ResizeSessionRequest, SessionInfo, TerminalSize,
};
use roost_store::ComputerRecord;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::exec::terminal_size;
use crate::guest::Guest;
use crate::{Control, Failure};

const IN_FLIGHT: usize = 16;
const ROWS: u32 = 24;
const COLUMNS: u32 = 80;

/// What a viewer sees, in order.
pub type TerminalOutputs = tonic::Streaming<AttachOutput>;

/// Somebody who watches a session and types into it. Dropping it leaves the session as it is.
#[derive(Debug)]
pub struct TerminalViewer {
    pub input: mpsc::Sender<AttachInput>,
    pub output: TerminalOutputs,
}

impl Control {
    async fn terminals(&self, id: ComputerId) -> Result<TerminalClient<Guest>, Failure> {
        Ok(TerminalClient::new(self.guest(id).await?))
    }

    /// Opens a session, which stays until its program ends or it is closed.
    pub async fn open_terminal(
        &self,
        record: &ComputerRecord,
        request: OpenTerminal,
    ) -> Result<Terminal, Failure> {
        let size = terminal_size(request.rows.unwrap_or(ROWS), request.cols.unwrap_or(COLUMNS))?;
        let open = OpenSessionRequest {
            size: Some(size),
            argv: request.shell.filter(|shell| !shell.is_empty()).into_iter().collect(),
            cwd: request.cwd.unwrap_or_default(),
            env: request.env.unwrap_or_default().into_iter().collect(),
            user: request.user.unwrap_or_default(),
        };
        let mut client = self.terminals(record.id).await?;
        let session = client.open_session(open).await.map_err(Failure::from_guest)?.into_inner();
        let token = self.stream_token(record, &StreamTokenRequest::default())?;
        Ok(Terminal {
            ws_url: format!("{}?session_id={}", self.terminal_url(record), session.id),
            session_id: session.id.clone(),
            id: session.id,
            computer_id: record.id,
            cols: size.columns,
            rows: size.rows,
            shell: session.program,
            token: token.token,
            expires_at: token.expires_at,
        })
    }

    pub async fn terminal_sessions(&self, id: ComputerId) -> Result<TerminalList, Failure> {
        let mut client = self.terminals(id).await?;
        let list = client.list_sessions(ListSessionsRequest {}).await.map_err(Failure::from_guest)?;
        let sessions: Vec<TerminalRow> = list.into_inner().sessions.into_iter().map(row).collect();
        Ok(TerminalList { computer_id: id, total: sessions.len(), sessions })
    }

    pub async fn resize_terminal(
        &self,
        id: ComputerId,
        session: &str,
        request: ResizeTerminal,
    ) -> Result<TerminalResized, Failure> {
        let size = terminal_size(request.rows, request.cols)?;
        let mut client = self.terminals(id).await?;
        let resize = ResizeSessionRequest { id: session.to_owned(), size: Some(size) };
        client.resize_session(resize).await.map_err(of_session)?;
        Ok(TerminalResized { session_id: session.to_owned(), cols: size.columns, rows: size.rows })
    }

    pub async fn close_terminal(&self, id: ComputerId, session: &str) -> Result<TerminalClosed, Failure> {
        let mut client = self.terminals(id).await?;
        let close = CloseSessionRequest { id: session.to_owned() };
        client.close_session(close).await.map_err(of_session)?;
        Ok(TerminalClosed { session_id: session.to_owned(), closed: true })
    }

    /// Watches a session; `size` is for all its viewers.
    pub async fn attach_terminal(
        &self,
        id: ComputerId,
        session: &str,
        size: Option<TerminalSize>,
    ) -> Result<TerminalViewer, Failure> {
        let mut client = self.terminals(id).await?;
        let (input, inputs) = mpsc::channel(IN_FLIGHT);
        let attach = AttachStart { id: session.to_owned(), size };
        let first = AttachInput { input: Some(Input::Attach(attach)) };
        let inputs = tokio_stream::StreamExt::chain(tokio_stream::once(first), ReceiverStream::new(inputs));
        let output = client.attach(inputs).await.map_err(of_session)?.into_inner();
        Ok(TerminalViewer { input, output })
    }
}

fn row(session: SessionInfo) -> TerminalRow {
    let size = session.size.unwrap_or_default();
    TerminalRow {
        session_id: session.id.clone(),
        id: session.id,
        cols: size.columns,
        rows: size.rows,
        shell: session.program,
        age_seconds: session.age_ms / 1000,
        viewers: session.viewers,
    }
}

fn of_session(status: tonic::Status) -> Failure {
    match status.code() {
        tonic::Code::NotFound => Failure::new(
            ErrorCode::NotFound,
            "terminal session not found: it has ended, or was never there; open a new one",
        ),
        _ => Failure::from_guest(status),
    }
}
