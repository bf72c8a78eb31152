//! How the sink answers.

use serde::{Deserialize, Serialize};

/// How deliveries are answered. In `POST /behave` what is left out has its
/// default, so `{}` is a receiver that works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// The HTTP status, 200 to 599. With `fail_next` it is the failures' status,
    /// or 503 where it is a 2xx.
    pub status: u16,
    /// Fail so many, then answer 200; counts down.
    pub fail_next: Option<u64>,
    /// Wait so long before answering, in milliseconds.
    pub delay_ms: u64,
    /// Never answer.
    pub hang: bool,
    /// A `Retry-After` to send with a failure, in seconds.
    pub retry_after: Option<u32>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            status: 200,
            fail_next: None,
            delay_ms: 0,
            hang: false,
            retry_after: None,
        }
    }
}

/// What is done with one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) delay_ms: u64,
    pub(super) hang: bool,
    pub(super) retry_after: Option<u32>,
}

impl Behaviour {
    /// Checks the numbers.
    ///
    /// # Errors
    /// With what is wrong and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        match self.status {
            200..=599 => Ok(()),
            other => Err(format!("status is {other}; allowed are 200 to 599")),
        }
    }

    /// The answer to the next delivery.
    pub(super) fn next(&mut self) -> Answer {
        let status = match &mut self.fail_next {
            None => self.status,
            Some(0) => 200,
            Some(left) => {
                *left -= 1;
                if self.status < 300 { 503 } else { self.status }
            }
        };
        Answer {
            status,
            delay_ms: self.delay_ms,
            hang: self.hang,
            retry_after: self.retry_after.filter(|_| status >= 300),
        }
    }
}
