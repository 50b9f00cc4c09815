/* SPDX-License-Identifier: MIT
 *
 * FsServer: the mounted filesystem. Made by main, which owns the store.
 */
#pragma once

#include "mailfs/config.h"
#include "mailfs/store.h"

typedef struct FsServer FsServer;

/* The naming rules of this layout, for mail_store_new. */
const MailNaming *fs_naming (MailLayout layout);

/* Borrows config and store, which outlive it. */
FsServer *fs_server_new (const MailConfig *config, MailStore *store, GError **error);
/* Clears a dead mount of our own at the mount point, then mounts. MAIL_ERROR_FAILED with a line. */
gboolean fs_server_mount (FsServer *server, GError **error);
/* Called once, from a FUSE thread, when the kernel has greeted the mount. Set before run. */
void fs_server_set_ready (FsServer *server, void (*ready) (gpointer user_data), gpointer user_data);
/* Serves until unmounted or told to stop; blocks. FALSE: the session broke. */
gboolean fs_server_run (FsServer *server);
/* Any thread, also in a signal handler. run returns soon afterwards. */
void fs_server_stop (FsServer *server);
/* After run: answers who still waits for the store, and stops the notifier. What the net thread is
 * just answering must be finished before unmount, which closes the descriptor. */
void fs_server_leave (FsServer *server);
void fs_server_unmount (FsServer *server);
/* After mail_store_stop. */
void fs_server_free (FsServer *server);
