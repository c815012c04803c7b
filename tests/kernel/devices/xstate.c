/*
 * Lets user-mode Linux run on processors whose XSAVE area is larger than the one it was built for (AMX): it writes back the part
 * that it knows, and the host's kernel refuses to take a part (xstateregs_set: EFAULT). Preloaded into linux.uml, this writes the
 * whole area, with that part replaced.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

#define GETREGSET 0x4204
#define SETREGSET 0x4205
#define NT_X86_XSTATE 0x202

static long (*next)(long, pid_t, void *, void *);

long ptrace(long request, ...)
{
	static char whole[1 << 16] __attribute__((aligned(64)));
	struct iovec all = { whole, sizeof(whole) }, *part;
	void *address, *data;
	va_list list;
	pid_t pid;
	long done;

	va_start(list, request);
	pid = va_arg(list, pid_t);
	address = va_arg(list, void *);
	data = va_arg(list, void *);
	va_end(list);
	if (!next)
		next = (long (*)(long, pid_t, void *, void *))dlsym(RTLD_NEXT, "ptrace");
	if (request != SETREGSET || (long)address != NT_X86_XSTATE)
		return next(request, pid, address, data);
	done = next(GETREGSET, pid, address, &all);
	if (done < 0)
		return done;
	part = data;
	memcpy(whole, part->iov_base, part->iov_len < all.iov_len ? part->iov_len : all.iov_len);
	return next(SETREGSET, pid, address, &all);
}
