//! Environment variables: kept sealed, given to the guest.
//!
//! The rows are the truth. A guest gets the whole set over its own channel, never through a file of the host: as the
//! last step of every start, before anybody sees the computer running, and after every change while it runs. Sets
//! carry the version of the rows they were read from, so one that is late changes nothing.
//!
//! No set is missed: a change is committed before it looks whether the machine runs, and a start reads the rows after
//! the machine was recorded as running. So at least one of the two sees the other.

use std::collections::BTreeMap;

use roost_api::{
    ApiError, ChangeVariable, ComputerId, ErrorCode, MASKED, SetVariable, TenantId, Variable, Variables,
};
use roost_launch::Environment;
use roost_store::{ComputerRecord, IfMissing, NewVariable, Observed, VariableRecord, VariableSet};

use crate::{Control, Failure};

const LONGEST_NAME: usize = 256;
const LONGEST_VALUE: usize = 32 * 1024;
const MOST_VARIABLES: usize = 200;
/// Of all names and values: every process starts with a copy, and the kernel limits that (at a far higher number, so
/// that two changes at one moment may go beyond ours without harm).
const MOST_BYTES: usize = 256 * 1024;

/// How setting a variable went.
#[derive(Debug, Clone)]
pub enum VariableOutcome {
    New(Variable),
    Changed(Variable),
}

impl Control {
    pub async fn variables(&self, record: &ComputerRecord) -> Result<Variables, Failure> {
        let env = self.inner.store.env(record.id).await?.ok_or_else(Failure::computer_not_found)?;
        let rows: Vec<Variable> = env.variables.iter().map(view).collect();
        Ok(Variables { data: rows.clone(), env: rows })
    }

    pub async fn set_variable(
        &self,
        record: &ComputerRecord,
        request: SetVariable,
    ) -> Result<VariableOutcome, Failure> {
        let name = request.name.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| ApiError::new(ErrorCode::MissingParam, "name is required"))?;
        match self.store_variable(record, name, request.value, IfMissing::Make).await? {
            VariableSet::New(variable) => Ok(VariableOutcome::New(view(&variable))),
            VariableSet::Changed(variable) => Ok(VariableOutcome::Changed(view(&variable))),
            VariableSet::Missing => Err(Failure::computer_not_found()),
        }
    }

    pub async fn change_variable(
        &self,
        record: &ComputerRecord,
        name: &str,
        request: ChangeVariable,
    ) -> Result<Variable, Failure> {
        match self.store_variable(record, name.to_owned(), request.value, IfMissing::Leave).await? {
            VariableSet::New(variable) | VariableSet::Changed(variable) => Ok(view(&variable)),
            VariableSet::Missing => Err(no_such_variable(name)),
        }
    }

    pub async fn remove_variable(&self, record: &ComputerRecord, name: &str) -> Result<(), Failure> {
        if !self.inner.store.remove_variable(record.id, name).await? {
            return Err(no_such_variable(name));
        }
        self.tell_guest(record.id).await
    }

    async fn store_variable(
        &self,
        record: &ComputerRecord,
        name: String,
        value: Option<String>,
        if_missing: IfMissing,
    ) -> Result<VariableSet, Failure> {
        let value = value.ok_or_else(|| ApiError::new(ErrorCode::MissingParam, "value is required"))?;
        let mut all = self.kept(record.tenant_id, record.id).await?;
        if if_missing == IfMissing::Leave && !all.contains_key(&name) {
            return Ok(VariableSet::Missing);
        }
        all.insert(name.clone(), value.clone());
        check(&all)?;
        let sealed = self.seal(record.tenant_id, record.id, &name, &value)?;
        let variable = NewVariable { name, value: sealed };
        let set = self.inner.store.set_variable(record.id, &variable, if_missing).await?;
        if set != VariableSet::Missing {
            self.tell_guest(record.id).await?;
        }
        Ok(set)
    }

    /// The variables of a computer that is being made, sealed for it.
    pub(crate) fn new_variables(
        &self,
        tenant: TenantId,
        computer: ComputerId,
        variables: &BTreeMap<String, String>,
    ) -> Result<Vec<NewVariable>, Failure> {
        check(variables)?;
        let sealed = variables.iter().map(|(name, value)| {
            Ok(NewVariable { name: name.clone(), value: self.seal(tenant, computer, name, value)? })
        });
        sealed.collect()
    }

    /// The same with what another computer of the tenant has, and then `set`. One that is gone has none.
    pub(crate) async fn variables_of(
        &self,
        tenant: TenantId,
        source: ComputerId,
        computer: ComputerId,
        set: &BTreeMap<String, String>,
    ) -> Result<Vec<NewVariable>, Failure> {
        let mut variables = self.kept(tenant, source).await?;
        variables.extend(set.clone());
        self.new_variables(tenant, computer, &variables)
    }

    /// Gives the guest of a machine that was recorded as running what the rows say now.
    pub(crate) async fn give_environment(&self, record: &ComputerRecord) -> Result<(), Failure> {
        let environment = self.plain(record.tenant_id, record.id).await?;
        // A computer fresh from a template, or one that never had any, has nothing to forget either.
        if environment.version == 0 && record.snapshot.is_none() {
            return Ok(());
        }
        Ok(self.inner.regions.of(&record.region)?.set_environment(record.id, &environment).await?)
    }

    async fn tell_guest(&self, computer: ComputerId) -> Result<(), Failure> {
        let record = self.record(computer).await?;
        if record.observed != Observed::Running {
            return Ok(());
        }
        self.give_environment(&record).await.map_err(|failure| Failure {
            public: ApiError::new(
                ErrorCode::AgentUnavailable,
                "the change is kept, but the computer's command service did not take it; \
                 it takes effect at the next change or start",
            ),
            source: Some(Box::new(failure)),
        })
    }

    /// What the guest is to have now.
    async fn plain(&self, tenant: TenantId, computer: ComputerId) -> Result<Environment, Failure> {
        let Some(env) = self.inner.store.env(computer).await? else {
            return Ok(Environment { version: 0, variables: BTreeMap::new() });
        };
        let mut variables = self.opened(tenant, computer, env.variables)?;
        for NewVariable { name, value } in env.of_start {
            let plain =
                self.open_variable(&start_context(tenant, computer, &name), computer, &name, &value)?;
            variables.insert(name, plain);
        }
        Ok(Environment { version: env.version, variables })
    }

    /// What it has at every start.
    async fn kept(
        &self,
        tenant: TenantId,
        computer: ComputerId,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let env = self.inner.store.env(computer).await?;
        self.opened(tenant, computer, env.map(|env| env.variables).unwrap_or_default())
    }

    fn opened(
        &self,
        tenant: TenantId,
        computer: ComputerId,
        sealed: Vec<VariableRecord>,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let opened = sealed.into_iter().map(|VariableRecord { name, value, .. }| {
            let plain = self.open_variable(&context(tenant, computer, &name), computer, &name, &value)?;
            Ok((name, plain))
        });
        opened.collect()
    }

    fn open_variable(
        &self,
        context: &str,
        computer: ComputerId,
        name: &str,
        sealed: &str,
    ) -> Result<String, Failure> {
        let plain = self.inner.config.seal_key.open(context, sealed);
        plain.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
            let what = format!(
                "the variable {name:?} of computer {computer} cannot be decrypted: is keys/seal.key the one it \
                 was written with? restore that key, or delete the variable"
            );
            Failure::internal(std::io::Error::other(what))
        })
    }

    /// Variables that are given with a start, sealed.
    pub(crate) async fn start_variables(
        &self,
        record: &ComputerRecord,
        variables: &BTreeMap<String, String>,
    ) -> Result<Vec<NewVariable>, Failure> {
        let mut all = self.kept(record.tenant_id, record.id).await?;
        all.extend(variables.clone());
        check(&all)?;
        let sealed = variables.iter().map(|(name, value)| {
            let context = start_context(record.tenant_id, record.id, name);
            let value = self.inner.config.seal_key.seal(&context, value.as_bytes())?;
            Ok(NewVariable { name: name.clone(), value })
        });
        sealed.collect()
    }

    fn seal(
        &self,
        tenant: TenantId,
        computer: ComputerId,
        name: &str,
        value: &str,
    ) -> Result<String, Failure> {
        self.inner.config.seal_key.seal(&context(tenant, computer, name), value.as_bytes())
    }
}

/// The same for one that holds until the next start.
pub(crate) fn start_context(tenant: TenantId, computer: ComputerId, name: &str) -> String {
    format!("start-env/{tenant}/{computer}/{name}")
}

/// A value opens only as this variable of this computer.
pub(crate) fn context(tenant: TenantId, computer: ComputerId, name: &str) -> String {
    format!("env/{tenant}/{computer}/{name}")
}

fn check(variables: &BTreeMap<String, String>) -> Result<(), ApiError> {
    for (name, value) in variables {
        if name.len() > LONGEST_NAME || !is_name(name) {
            let problem = format!(
                "{name:?} is no name of a variable: up to {LONGEST_NAME} letters, digits and `_`, no digit first"
            );
            return Err(ApiError::field("name", problem));
        }
        if value.len() > LONGEST_VALUE {
            let problem =
                format!("the value of {name} is longer than {LONGEST_VALUE} bytes; keep it in a file");
            return Err(ApiError::field("value", problem));
        }
        if value.contains('\0') {
            let problem = format!("the value of {name} contains a NUL, which no environment can hold");
            return Err(ApiError::field("value", problem));
        }
    }
    if variables.len() > MOST_VARIABLES {
        let problem = format!("a computer has at most {MOST_VARIABLES} variables; delete one first");
        return Err(ApiError::field("name", problem));
    }
    let bytes: usize = variables.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MOST_BYTES {
        let problem = format!("all names and values together are longer than {MOST_BYTES} bytes");
        return Err(ApiError::field("value", problem));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn view(record: &VariableRecord) -> Variable {
    Variable {
        name: record.name.clone(),
        value: MASKED,
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}

fn no_such_variable(name: &str) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("this computer has no variable {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> BTreeMap<String, String> {
        [(name.to_owned(), value.to_owned())].into()
    }

    #[test]
    fn what_no_environment_holds_is_refused() {
        assert!(check(&one("_A1", "any\nthing = '\"$")).is_ok());
        for name in ["", "1A", "A-B", "A=B", "Ä", "A B", "A\n", &"x".repeat(LONGEST_NAME + 1)] {
            assert!(check(&one(name, "")).is_err(), "{name:?}");
        }
        assert!(check(&one("A", "\0")).is_err());
        assert!(check(&one("A", &"x".repeat(LONGEST_VALUE))).is_ok());
        assert!(check(&one("A", &"x".repeat(LONGEST_VALUE + 1))).is_err());
        let many = |count: usize, length: usize| {
            (0..count).map(|number| (format!("V{number:05}"), "x".repeat(length))).collect()
        };
        assert!(check(&many(MOST_VARIABLES, 1)).is_ok());
        assert!(check(&many(MOST_VARIABLES + 1, 1)).is_err());
        assert!(check(&many(9, LONGEST_VALUE)).is_err());
    }
}
