//! Files inside a computer.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    File,
    Directory,
    Symlink,
    /// A socket, a device or the like.
    Other,
}

/// An entry of a directory. Of a link it says what the link is, not what it leads to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FileRow {
    pub name: String,
    pub path: String,
    #[serde(rename = "type")]
    pub kind: FileType,
    pub size: u64,
    pub size_bytes: u64,
    pub is_dir: bool,
    pub is_symlink: bool,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified_at: Timestamp,
}

/// What is in a directory, by name. The published clients read three keys; all have the same rows.
#[derive(Debug, Clone, ToSchema)]
pub struct FileList {
    pub path: String,
    pub files: Vec<FileRow>,
    /// The same as `files`.
    #[schema(value_type = Vec<FileRow>)]
    pub entries: SameRows,
    /// The same as `files`.
    #[schema(value_type = Vec<FileRow>)]
    pub data: SameRows,
}

/// Stands for rows that are written again and not kept again.
#[derive(Debug, Clone, Copy)]
pub struct SameRows;

impl FileList {
    pub fn new(path: String, files: Vec<FileRow>) -> Self {
        Self { path, files, entries: SameRows, data: SameRows }
    }
}

impl Serialize for FileList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_struct("FileList", 4)?;
        list.serialize_field("path", &self.path)?;
        for key in ["files", "entries", "data"] {
            list.serialize_field(key, &self.files)?;
        }
        list.end()
    }
}

/// Permission bits as a client reads them: an integer, or octal text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum ShownMode {
    Bits(u32),
    Octal(String),
}

/// A link is not followed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FileStat {
    pub path: String,
    pub size: u64,
    pub mode: ShownMode,
    pub is_dir: bool,
    pub is_symlink: bool,
    pub symlink_target: Option<String>,
    pub uid: u32,
    pub gid: u32,
    pub modified_at: Timestamp,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DirectoryEntry {
    pub name: String,
    pub is_dir: bool,
    pub is_symlink: bool,
    pub size: u64,
    pub modified_at: Timestamp,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DirectoryEntries {
    pub entries: Vec<DirectoryEntry>,
}

/// Bytes as they are, in the document of the API: a file, an archive, a picture.
#[derive(Debug, Clone, Copy)]
pub struct Binary;

impl PartialSchema for Binary {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::Binary)))
            .into()
    }
}

impl ToSchema for Binary {}

/// The parts of the form of `files/upload`, in the document of the API.
#[derive(Debug, Clone, ToSchema)]
pub struct UploadForm {
    /// Where it is to be; with a slash at the end, the directory it is to be in (`/workspace/`).
    pub path: Option<String>,
    /// The content, and the file's name.
    #[schema(value_type = String, format = Binary)]
    pub file: Binary,
}

/// Permission bits as a client writes them: octal text such as `"0755"`, or an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl PartialSchema for FileMode {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}

impl ToSchema for FileMode {}

impl std::str::FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        match u32::from_str_radix(digits, 8) {
            Ok(bits) if bits <= 0o7777 && !digits.starts_with('+') => Ok(Self(bits)),
            _ => Err(format!("{text:?} is no mode: octal digits such as \"0755\"")),
        }
    }
}

impl Serialize for FileMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:04o}", self.0))
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bits(u32),
            Text(String),
        }
        let mode = match Written::deserialize(deserializer) {
            Ok(Written::Bits(bits)) if bits <= 0o7777 => Ok(Self(bits)),
            Ok(Written::Bits(bits)) => Err(format!("{bits} is no mode: at most 4095")),
            Ok(Written::Text(text)) => text.parse(),
            Err(_) => Err("no mode: octal digits such as \"0755\", or an integer".to_owned()),
        };
        mode.map_err(serde::de::Error::custom)
    }
}

/// Query of the routes that read.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FileQuery {
    /// Absolute; `/workspace` where a list needs none.
    pub path: Option<String>,
    /// A directory as `tar` (what it is by default) or `zip`.
    pub archive: Option<ArchiveFormat>,
    /// From `export`, instead of a credential.
    pub ticket: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ArchiveFormat {
    Tar,
    Zip,
}

/// Body of the routes that take nothing but a path.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct FilePathRequest {
    /// Required; absolute.
    pub path: Option<String>,
}

/// Body of `POST /files/write`; one of the contents is required.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct WriteFileRequest {
    /// Required; absolute. The directories it is in are made.
    pub path: Option<String>,
    pub content_base64: Option<String>,
    /// Text.
    pub content: Option<String>,
    /// As it was; `"0644"` for a new file.
    pub mode: Option<FileMode>,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct WriteFilesRequest {
    pub files: Vec<WriteFileRequest>,
}

/// A file that was written.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WrittenFile {
    /// Always true.
    pub success: bool,
    pub path: String,
    pub name: String,
    pub size: u64,
    pub is_dir: bool,
    pub modified_at: Timestamp,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WrittenFiles {
    /// Always true.
    pub success: bool,
    pub written: usize,
}

/// Query of `PUT /files/content`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PutFileQuery {
    /// Required; absolute.
    pub path: Option<String>,
    /// Octal; as it was, `0644` for a new file.
    pub mode: Option<String>,
    /// 8 to 64 letters, digits and dashes that name an upload. What arrives of it is kept when the connection breaks.
    pub upload_id: Option<String>,
    /// Of an upload: how much of it is there, which must be so.
    pub offset: Option<u64>,
    /// Of an upload: how long the file is. It is in its place as soon as it is.
    pub total: Option<u64>,
    /// When the file was last changed, for copies that keep that; now.
    pub modified_at: Option<Timestamp>,
}

/// How far an upload is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UploadProgress {
    /// Always true.
    pub success: bool,
    pub path: String,
    pub upload_id: String,
    pub received: u64,
    pub complete: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UploadedFile {
    /// Always true.
    pub success: bool,
    pub file: UploadedFileRow,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UploadedFileRow {
    pub path: String,
    pub filename: String,
    pub size_bytes: u64,
}

/// A file, and a link to it that needs no credential for a while.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExportedFile {
    /// Always true.
    pub success: bool,
    pub path: String,
    pub filename: String,
    pub size_bytes: u64,
    pub url: String,
    pub expires_at: Timestamp,
    /// Not there for files above 10 MB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_base64: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FileDone {
    /// Always true.
    pub success: bool,
    pub path: String,
}

impl FileDone {
    pub fn new(path: String) -> Self {
        Self { success: true, path }
    }
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct MakeDirectory {
    /// Required; absolute.
    pub path: Option<String>,
    /// Also those that it is in, and one that is there already is fine (true).
    pub recursive: Option<bool>,
    /// `"0755"`
    pub mode: Option<FileMode>,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct RenameFile {
    /// Required; absolute.
    pub from: Option<String>,
    /// Required; absolute. The directories it is in are made.
    pub to: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CopyFile {
    /// Required; absolute.
    pub from: Option<String>,
    /// Required; absolute. The directories it is in are made.
    pub to: Option<String>,
    /// Needed for a directory (false).
    pub recursive: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ChangeFileMode {
    /// Required; absolute.
    pub path: Option<String>,
    /// Required.
    pub mode: Option<FileMode>,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SearchFiles {
    /// The directory (`/workspace`).
    pub path: Option<String>,
    /// A pattern of names, with `*` and `?`.
    pub name: Option<String>,
    /// Text in a line of a file.
    pub content: Option<String>,
    pub ignore_case: Option<bool>,
    /// 1 to 10000 (1000).
    pub limit: Option<u32>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FoundFile {
    pub path: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: FileType,
    pub size: u64,
    /// Where the text is, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The line's beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FoundFiles {
    pub path: String,
    pub matches: Vec<FoundFile>,
    pub total: usize,
    /// There may be more than the limit.
    pub truncated: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UnpackedArchive {
    /// Always true.
    pub success: bool,
    pub path: String,
    pub entries: u64,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WatchFiles {
    /// The directory (`/workspace`).
    pub path: Option<String>,
    /// Also what is below (false).
    pub recursive: Option<bool>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn modes_are_octal_text_or_integers() {
        let read = |value| serde_json::from_value::<FileMode>(value).map(|mode| mode.0).ok();
        let cases = [
            (json!("0755"), Some(0o755)),
            (json!("644"), Some(0o644)),
            (json!("0o600"), Some(0o600)),
            (json!("7777"), Some(0o7777)),
            (json!(493), Some(0o755)),
            (json!("0888"), None),
            (json!(""), None),
            (json!("+755"), None),
            (json!("77777"), None),
            (json!(4096), None),
            (json!(-1), None),
            (json!(true), None),
        ];
        for (value, bits) in cases {
            assert_eq!(read(value.clone()), bits, "{value}");
        }
    }

    #[test]
    fn a_list_has_its_rows_under_each_key() {
        let list = serde_json::to_value(FileList::new("/x".to_owned(), Vec::new())).unwrap();
        assert_eq!(list, json!({ "path": "/x", "files": [], "entries": [], "data": [] }));
    }
}
