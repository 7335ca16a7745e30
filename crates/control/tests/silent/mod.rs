//! For tests without webhooks.

use std::collections::BTreeMap;

/// Speaks to nobody.
#[derive(Debug)]
pub struct Silent;

#[async_trait::async_trait]
impl roost_control::Outbound for Silent {
    fn check(&self, _url: &str) -> Result<(), String> {
        Ok(())
    }

    fn check_headers(&self, _headers: &BTreeMap<String, String>) -> Result<(), String> {
        Ok(())
    }

    async fn post(
        &self,
        _url: &str,
        _headers: &BTreeMap<String, String>,
        _body: &str,
    ) -> Result<(u16, String), String> {
        Err("nobody is spoken to".to_owned())
    }
}
