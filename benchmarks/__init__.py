"""Commands that print numbers; none of them is a test."""

import dreamkit  # noqa: F401  before torch: it says how long torch's threads wait busily
