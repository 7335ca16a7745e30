//! Queries that are put together from parts. The driver's own builder writes `?` for a parameter, which PostgreSQL
//! does not read; this one numbers them.

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, Arguments, AssertSqlSafe, Encode, Type};

#[derive(Default)]
pub(crate) struct QueryBuilder {
    text: String,
    values: AnyArguments,
}

impl QueryBuilder {
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text: text.to_owned(), values: AnyArguments::default() }
    }

    /// Adds SQL, which is part of the program and never comes from a caller.
    pub(crate) fn push(&mut self, text: &'static str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Adds a parameter.
    pub(crate) fn push_bind<'v, T: Encode<'v, Any> + Type<Any>>(&mut self, value: T) -> &mut Self {
        self.values.add(value).expect("text and whole numbers have an encoding");
        self.text.push_str(&format!("${}", self.values.len()));
        self
    }

    /// Adds ` IN (…)` with a parameter for each value. None is in an empty list, which SQL has no word for: so there is
    /// always the empty text, which no value is.
    pub(crate) fn push_in(&mut self, values: impl IntoIterator<Item: ToString>) -> &mut Self {
        self.push(" IN (''");
        for value in values {
            self.push(", ").push_bind(value.to_string());
        }
        self.push(")")
    }

    pub(crate) fn build<'q>(self) -> Query<'q, Any, AnyArguments> {
        sqlx::query_with(AssertSqlSafe(self.text), self.values)
    }
}
