# SPDX-License-Identifier: MIT
"""What the mount tests and the dialogue tests share: a private Dovecot, certificates, mail to put
into it, a plain IMAP client that says what is true, and the daemon under test."""
