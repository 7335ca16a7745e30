//! The files on the disk of a snapshot, without a computer.

use std::fmt::Write;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{AppendHeaders, IntoResponse};
use roost_api::{ApiError, Binary, Data, ErrorBody, ErrorCode, SnapshotPath, SnapshotTree};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Kept, Query};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(tree)).routes(routes!(files))
}

/// List a folder on the disk of a snapshot; the root by default
#[utoipa::path(get, path = "/snapshots/{sid}/tree", tag = "snapshots", params(("sid" = String, Path), SnapshotPath),
    responses((status = 200, body = Data<SnapshotTree>), (status = "default", body = ErrorBody)))]
async fn tree(
    State(app): State<App>,
    Kept(snapshot): Kept,
    Query(query): Query<SnapshotPath>,
) -> Result<Json<Data<SnapshotTree>>, Refusal> {
    let path = query.path.as_deref().unwrap_or("/");
    Ok(Json(Data { data: app.control.snapshot_tree(&snapshot, path).await? }))
}

/// Read a file on the disk of a snapshot, or a folder as a tar archive
#[utoipa::path(get, path = "/snapshots/{sid}/files", tag = "snapshots", params(("sid" = String, Path), SnapshotPath),
    responses(
        (status = 200, description = "A file of at most 2 GiB; or an archive of at most 1 GiB, 50,000 entries and \
            5,000 folders",
            content((inline(Binary) = "application/octet-stream"), (inline(Binary) = "application/x-tar"))),
        (status = "default", body = ErrorBody)
    ))]
async fn files(
    State(app): State<App>,
    Kept(snapshot): Kept,
    Query(query): Query<SnapshotPath>,
) -> Result<impl IntoResponse, Refusal> {
    app.control.require_ready(&snapshot)?;
    let path = query.path.ok_or_else(|| ApiError::new(ErrorCode::MissingParam, "path is required"))?;
    let download = app.control.snapshot_file(&snapshot, &path).await?;
    let (kind, name) = match (download.size, download.name.as_str()) {
        (Some(_), name) => ("application/octet-stream", name.to_owned()),
        (None, "") => ("application/x-tar", format!("{}.tar", snapshot.id)),
        (None, name) => ("application/x-tar", format!("{name}.tar")),
    };
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_DISPOSITION, attachment(&name)),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        // A guest wrote it: no browser shall make a page of it.
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    let length = download.size.map(|size| (header::CONTENT_LENGTH, size.to_string()));
    let body = Body::from_stream(download.chunks.into_stream());
    Ok((headers, AppendHeaders(length), body))
}

/// A header that saves the answer under `name`, whatever is in it (RFC 6266).
pub(super) fn attachment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fallback: String =
        name.chars().map(|letter| if u8::try_from(letter).is_ok_and(plain) { letter } else { '_' }).collect();
    let mut header = format!("attachment; filename=\"{fallback}\"; filename*=UTF-8''");
    for byte in name.bytes() {
        if plain(byte) {
            header.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(header, "%{byte:02X}");
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::attachment;

    #[test]
    fn names_cannot_leave_their_header() {
        let cases = [
            ("a-b_c.txt", "attachment; filename=\"a-b_c.txt\"; filename*=UTF-8''a-b_c.txt"),
            ("a\"\r\nb;", "attachment; filename=\"a___b_\"; filename*=UTF-8''a%22%0D%0Ab%3B"),
            ("é", "attachment; filename=\"_\"; filename*=UTF-8''%C3%A9"),
        ];
        for (name, header) in cases {
            assert_eq!(attachment(name), header);
        }
    }
}
