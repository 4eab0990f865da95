/* libfuse's low-level interface, at the version that the project is written against. */
#ifndef CFUSE3_H
#define CFUSE3_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 312
#endif
#include <fuse3/fuse_lowlevel.h>
#endif
