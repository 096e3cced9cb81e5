# Kernels on images. In a Program an image lies in blocks of rows (lanes.h); direct calls bring plain arrays,
# which the convolutions lay into `room` and take out again; the others take them as blocks of one row.

cdef extern from "kernels.h" nogil:
    ctypedef struct Axis:
        Py_ssize_t up, down, dilation, offset, size, kernel
    ctypedef struct Gather:
        Axis h, w
        Py_ssize_t rows, blocks, groups, channels, outputs, oh, ow, w_group, w_out, w_in, w_h, w_w, places
    ctypedef struct Correlation:
        Py_ssize_t blocks, groups, a_channels, x_channels, ah, aw, xh, xw, kh, kw
        Py_ssize_t stride_h, stride_w, padding_top, padding_left, dilation_h, dilation_w, dw_a, dw_x, dw_group
        int sums_of_x
        Py_ssize_t pool_h, pool_w
        int activation
    ctypedef struct Pooling:
        Py_ssize_t ih, iw, oh, ow, kernel_h, kernel_w, stride_h, stride_w, padding_top, padding_left
    void gather_f32(const Gather* g, const float* x, const float* w, const float* bias, const float* saved,
                    int activation, Py_ssize_t pool_h, Py_ssize_t pool_w, float* y, float* position,
                    Py_ssize_t part, Py_ssize_t parts)
    void gather_f64(const Gather* g, const double* x, const double* w, const double* bias,
                    const double* saved,
                    int activation, Py_ssize_t pool_h, Py_ssize_t pool_w, double* y, double* position,
                    Py_ssize_t part, Py_ssize_t parts)
    void correlation_f32(const Correlation* k, const float* a, const float* position, const float* y,
                         const float* x, float* rest, float* dw, float* db,
                         Py_ssize_t part, Py_ssize_t parts)
    void correlation_f64(const Correlation* k, const double* a, const double* position, const double* y,
                         const double* x, double* rest, double* dw, double* db,
                         Py_ssize_t part, Py_ssize_t parts)
    void max_pool_f32(Py_ssize_t lanes, const Pooling* k, const float* x, float* y, float* position)
    void max_pool_f64(Py_ssize_t lanes, const Pooling* k, const double* x, double* y, double* position)
    void max_unpool_f32(Py_ssize_t lanes, const Pooling* k, const float* dy, const float* position,
                        const float* y, int activation, float* dx)
    void max_unpool_f64(Py_ssize_t lanes, const Pooling* k, const double* dy, const double* position,
                        const double* y, int activation, double* dx)
    void avg_pool_f32(Py_ssize_t lanes, const Pooling* k, int all, const float* x, float* y)
    void avg_pool_f64(Py_ssize_t lanes, const Pooling* k, int all, const double* x, double* y)
    void avg_unpool_f32(Py_ssize_t lanes, const Pooling* k, int all, const float* dy, float* dx)
    void avg_unpool_f64(Py_ssize_t lanes, const Pooling* k, int all, const double* dy, double* dx)
    void upsample_f32(Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw,
                      const float* x, float* y)
    void upsample_f64(Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw,
                      const double* x, double* y)
    void downsum_f32(Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw,
                     const float* dy, float* dx)
    void downsum_f64(Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw,
                     const double* dy, double* dx)
    double plane_sum_f32(const float* x, float shift, const float* b, float b_shift, int square,
                         Py_ssize_t step,
                         Py_ssize_t blocks, Py_ssize_t places, Py_ssize_t lanes, Py_ssize_t valid)
    double plane_sum_f64(const double* x, double shift, const double* b, double b_shift, int square,
                         Py_ssize_t step, Py_ssize_t blocks, Py_ssize_t places, Py_ssize_t lanes,
                         Py_ssize_t valid)
    void clear_lanes_f32(float* x, Py_ssize_t places, Py_ssize_t valid)
    void clear_lanes_f64(double* x, Py_ssize_t places, Py_ssize_t valid)
    void scale_plane_f32(const float* x, float* y, Py_ssize_t size, float shift, float scale, float offset)
    void scale_plane_f64(const double* x, double* y, Py_ssize_t size, double shift, double scale,
                         double offset)
    void interleave_f32(const float* x, Py_ssize_t x_row, Py_ssize_t rows, Py_ssize_t size, float* y)
    void interleave_f64(const double* x, Py_ssize_t x_row, Py_ssize_t rows, Py_ssize_t size, double* y)
    void deinterleave_f32(const float* x, Py_ssize_t rows, Py_ssize_t size, float* y, Py_ssize_t y_row)
    void deinterleave_f64(const double* x, Py_ssize_t rows, Py_ssize_t size, double* y, Py_ssize_t y_row)


# -- layout --------------------------------------------------------------------------------------

cdef inline Py_ssize_t block_rows(const real* like) noexcept nogil:
    """Rows side by side in a block: 64 bytes of them."""
    return 64 // <Py_ssize_t>sizeof(real)


cdef inline Py_ssize_t blocks_of(Py_ssize_t n, Py_ssize_t rows) noexcept nogil:
    return (n + rows - 1) // rows


cdef void to_blocks(const real* x, Py_ssize_t row, Py_ssize_t n, Py_ssize_t size, real* y,
                    Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """n rows of `size` numbers, `row` apart, into blocks."""
    cdef Py_ssize_t rows = block_rows(x), blocks = blocks_of(n, rows), i
    for i in range(share(blocks, part, parts), share(blocks, part + 1, parts)):
        if real is float:
            interleave_f32(x + i * rows * row, row, min(rows, n - i * rows), size, y + i * rows * size)
        else:
            interleave_f64(x + i * rows * row, row, min(rows, n - i * rows), size, y + i * rows * size)


cdef void from_blocks(const real* x, Py_ssize_t n, Py_ssize_t size, real* y, Py_ssize_t row,
                      Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t rows = block_rows(x), blocks = blocks_of(n, rows), i
    for i in range(share(blocks, part, parts), share(blocks, part + 1, parts)):
        if real is float:
            deinterleave_f32(x + i * rows * size, min(rows, n - i * rows), size, y + i * rows * row, row)
        else:
            deinterleave_f64(x + i * rows * size, min(rows, n - i * rows), size, y + i * rows * row, row)


cdef void images_from_rows(const real* x, real* y, Py_ssize_t n, Py_ssize_t m, Py_ssize_t c, Py_ssize_t ih,
                           Py_ssize_t iw, Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    if pad > 1:
        to_blocks(x, ld(m, pad), n, m, y, part, parts)
    elif part == 0:
        memcpy(y, x, n * m * sizeof(real))


cdef void rows_from_images(const real* x, real* y, Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw,
                           Py_ssize_t m, Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    if pad > 1:
        from_blocks(x, n, m, y, ld(m, pad), part, parts)
    elif part == 0:
        memcpy(y, x, n * m * sizeof(real))


# -- convolution ---------------------------------------------------------------------------------

cdef inline Axis reading(Py_ssize_t stride, Py_ssize_t padding, Py_ssize_t dilation, Py_ssize_t size,
                         Py_ssize_t kernel) noexcept nogil:
    """The axis of a convolution: a window's element is at place stride + element dilation - padding."""
    cdef Axis axis
    axis.up, axis.down, axis.dilation, axis.offset, axis.size, axis.kernel = (
        1, stride, dilation, -padding, size, kernel)
    return axis


cdef inline Axis spreading(Py_ssize_t stride, Py_ssize_t padding, Py_ssize_t dilation, Py_ssize_t size,
                           Py_ssize_t kernel) noexcept nogil:
    """The same turned round: the windows, `size` of them, that have a place as an element."""
    cdef Axis axis
    axis.up, axis.down, axis.dilation, axis.offset, axis.size, axis.kernel = (
        stride, 1, -dilation, padding, size, kernel)
    return axis


cdef inline void one_place(Gather* g, Py_ssize_t padding_h, Py_ssize_t padding_w) noexcept nogil:
    """A source of one place, spread by the whole kernel: every place of the output as one more output."""
    cdef Py_ssize_t places = g.h.kernel * g.w.kernel
    if (g.h.size == 1 and g.w.size == 1 and g.oh == g.h.kernel and g.ow == g.w.kernel
            and g.h.dilation == g.w.dilation == -1 and not padding_h and not padding_w):
        g.h = g.w = reading(1, 0, 1, 1, 1)
        g.outputs, g.places, g.oh, g.ow = g.outputs * places, places, 1, 1
        g.w_out = g.w_h = g.w_w = 1


cdef void gather(Gather* g, const real* x, const real* w, const real* b, const real* saved, int activation,
                 Py_ssize_t pool_h, Py_ssize_t pool_w, real* room, real* y, real* position,
                 Py_ssize_t n, Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """A gather over blocks, or over plain arrays, which are taken through `room`."""
    cdef Py_ssize_t rows = block_rows(x)
    cdef Py_ssize_t height = g.oh // pool_h if pool_h else g.oh, width = g.ow // pool_w if pool_w else g.ow
    cdef Py_ssize_t source = g.groups * g.channels * g.h.size * g.w.size
    cdef Py_ssize_t made = g.groups * g.outputs * height * width
    cdef real* laid
    cdef real* places
    g.rows, g.blocks = n, blocks_of(n, rows)
    if pad == 1:
        to_blocks(x, source, n, source, room, 0, 1)
        laid = room + g.blocks * rows * source
        places = laid + g.blocks * rows * made if position != NULL else NULL
        gather(g, <const real*>room, w, b, <const real*>NULL, LINEAR if saved != NULL else activation,
               pool_h, pool_w, <real*>NULL, laid, places, n, rows, 0, 1)
        from_blocks(<const real*>laid, n, made, y, made, 0, 1)
        if position != NULL:
            from_blocks(<const real*>places, n, made, position, made, 0, 1)
        if saved != NULL:
            slope(<const real*>y, saved, y, n * made, activation)
        return
    if real is float:
        gather_f32(g, x, w, b, saved, activation, pool_h, pool_w, y, position, part, parts)
    else:
        gather_f64(g, x, w, b, saved, activation, pool_h, pool_w, y, position, part, parts)


cdef void correlate(Correlation* k, const real* a, const real* position, const real* y, const real* x,
                    real* room, Py_ssize_t s, real* dw, real* db,
                    Py_ssize_t n, Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """A correlation over blocks, where `room` is for the sums of half of them, or over plain arrays."""
    cdef Py_ssize_t rows = block_rows(x)
    cdef Py_ssize_t of_a = k.groups * k.a_channels * k.ah * k.aw, of_x = k.groups * k.x_channels * k.xh * k.xw
    cdef Py_ssize_t sums = k.groups * (k.a_channels * k.dw_a + max(k.a_channels, k.x_channels))
    cdef real* rest = room if s >= sums else NULL
    cdef real* laid
    k.blocks = blocks_of(n, rows)
    if pad == 1:
        to_blocks(a, of_a, n, of_a, room, 0, 1)
        laid = room + k.blocks * rows * of_a
        to_blocks(x, of_x, n, of_x, laid, 0, 1)
        correlate(k, <const real*>room, <const real*>NULL, <const real*>NULL, <const real*>laid,
                  <real*>NULL, 0, dw, db, n, rows, 0, 1)
        return
    if real is float:
        correlation_f32(k, a, position, y, x, rest, dw, db, part, parts)
    else:
        correlation_f64(k, a, position, y, x, rest, dw, db, part, parts)


cdef void conv2d_forward(
        const real* x, const real* w, const real* b, int activation,
        Py_ssize_t stride_h, Py_ssize_t stride_w, Py_ssize_t padding_top, Py_ssize_t padding_left,
        Py_ssize_t padding_bottom, Py_ssize_t padding_right, Py_ssize_t dilation_h, Py_ssize_t dilation_w,
        Py_ssize_t groups, real* room, real* y,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t o, Py_ssize_t cg,
        Py_ssize_t kh, Py_ssize_t kw, Py_ssize_t s, Py_ssize_t oh, Py_ssize_t ow,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    conv2d_max_pool2d_forward(
        x, w, b, activation, stride_h, stride_w, padding_top, padding_left, padding_bottom, padding_right,
        dilation_h, dilation_w, groups, 0, 0, room, y, <real*>NULL,
        n, c, ih, iw, o, cg, kh, kw, s, oh, ow, pad, part, parts)


cdef void conv2d_max_pool2d_forward(
        const real* x, const real* w, const real* b, int activation,
        Py_ssize_t stride_h, Py_ssize_t stride_w, Py_ssize_t padding_top, Py_ssize_t padding_left,
        Py_ssize_t padding_bottom, Py_ssize_t padding_right, Py_ssize_t dilation_h, Py_ssize_t dilation_w,
        Py_ssize_t groups, Py_ssize_t pool_h, Py_ssize_t pool_w, real* room, real* y, real* position,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t o, Py_ssize_t cg,
        Py_ssize_t kh, Py_ssize_t kw, Py_ssize_t s, Py_ssize_t oh, Py_ssize_t ow,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Gather g
    g.h = reading(stride_h, padding_top, dilation_h, ih, kh)
    g.w = reading(stride_w, padding_left, dilation_w, iw, kw)
    g.groups, g.channels, g.outputs = groups, cg, o // groups
    g.oh, g.ow = oh * max(pool_h, 1), ow * max(pool_w, 1)
    g.w_out, g.w_in, g.w_h, g.w_w = ld(cg * kh * kw, pad), kh * kw, kw, 1
    g.w_group, g.places = g.outputs * g.w_out, 1
    gather(&g, x, w, b, <const real*>NULL, activation, pool_h, pool_w, room, y, position, n, pad, part, parts)


cdef void conv2d_input_grad(
        const real* da, const real* w, const real* x, int activation,
        Py_ssize_t stride_h, Py_ssize_t stride_w, Py_ssize_t padding_top, Py_ssize_t padding_left,
        Py_ssize_t padding_bottom, Py_ssize_t padding_right, Py_ssize_t dilation_h, Py_ssize_t dilation_w,
        Py_ssize_t groups, real* room, real* dx,
        Py_ssize_t n, Py_ssize_t o, Py_ssize_t oh, Py_ssize_t ow, Py_ssize_t cg, Py_ssize_t kh, Py_ssize_t kw,
        Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t s,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Gather g
    g.h = spreading(stride_h, padding_top, dilation_h, oh, kh)
    g.w = spreading(stride_w, padding_left, dilation_w, ow, kw)
    g.groups, g.channels, g.outputs, g.oh, g.ow = groups, o // groups, cg, ih, iw
    g.w_out, g.w_in, g.w_h, g.w_w = kh * kw, ld(cg * kh * kw, pad), kw, 1
    g.w_group, g.places = g.channels * g.w_in, 1
    one_place(&g, padding_top, padding_left)
    gather(&g, da, w, <const real*>NULL, x, activation if x != NULL else LINEAR, 0, 0, room, dx, <real*>NULL,
           n, pad, part, parts)


cdef void conv2d_weight_grad(
        const real* x, const real* da,
        Py_ssize_t stride_h, Py_ssize_t stride_w, Py_ssize_t padding_top, Py_ssize_t padding_left,
        Py_ssize_t padding_bottom, Py_ssize_t padding_right, Py_ssize_t dilation_h, Py_ssize_t dilation_w,
        Py_ssize_t groups, real* room, real* dw, real* db,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t o, Py_ssize_t oh, Py_ssize_t ow,
        Py_ssize_t s, Py_ssize_t cg, Py_ssize_t kh, Py_ssize_t kw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    conv2d_max_pool2d_weight_grad(
        x, da, <const real*>NULL, <const real*>NULL, LINEAR, stride_h, stride_w, padding_top, padding_left,
        padding_bottom, padding_right, dilation_h, dilation_w, groups, 0, 0, room, <real*>NULL, dw, db,
        n, c, ih, iw, o, oh, ow, s, oh, ow, cg, kh, kw, pad, part, parts)


cdef void conv2d_max_pool2d_weight_grad(
        const real* x, const real* dy, const real* position, const real* y, int activation,
        Py_ssize_t stride_h, Py_ssize_t stride_w, Py_ssize_t padding_top, Py_ssize_t padding_left,
        Py_ssize_t padding_bottom, Py_ssize_t padding_right, Py_ssize_t dilation_h, Py_ssize_t dilation_w,
        Py_ssize_t groups, Py_ssize_t pool_h, Py_ssize_t pool_w, real* room, real* da, real* dw, real* db,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t o, Py_ssize_t ph, Py_ssize_t pw,
        Py_ssize_t s, Py_ssize_t oh, Py_ssize_t ow, Py_ssize_t cg, Py_ssize_t kh, Py_ssize_t kw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Correlation k
    cdef const real* a = dy
    if pad == 1 and pool_h:  # plain arrays: what is pooled is laid out whole
        max_pool2d_backward(dy, position, y, activation, pool_h, pool_w, pool_h, pool_w, 0, 0, 0, 0, da,
                            n, o, ph, pw, oh, ow, pad, 0, 1)
        a, ph, pw, pool_h, pool_w = da, oh, ow, 0, 0
    k.groups, k.a_channels, k.x_channels, k.xh, k.xw = groups, o // groups, cg, ih, iw
    k.ah, k.aw, k.pool_h, k.pool_w = ph * max(pool_h, 1), pw * max(pool_w, 1), pool_h, pool_w
    k.kh, k.kw, k.stride_h, k.stride_w, k.padding_top, k.padding_left, k.dilation_h, k.dilation_w = (
        kh, kw, stride_h, stride_w, padding_top, padding_left, dilation_h, dilation_w)
    k.dw_a, k.dw_x = ld(cg * kh * kw, pad), kh * kw
    k.dw_group = k.a_channels * k.dw_a
    k.sums_of_x, k.activation = False, activation
    correlate(&k, a, position, y, x, room, s, dw, db, n, pad, part, parts)


cdef void conv2d_backward(
        const real* dy, const real* x, const real* w, const real* y, int activation,
        Py_ssize_t stride_h, Py_ssize_t stride_w, Py_ssize_t padding_top, Py_ssize_t padding_left,
        Py_ssize_t padding_bottom, Py_ssize_t padding_right, Py_ssize_t dilation_h, Py_ssize_t dilation_w,
        Py_ssize_t groups, real* room, real* da, real* dx, real* dw, real* db,
        Py_ssize_t n, Py_ssize_t o, Py_ssize_t oh, Py_ssize_t ow, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw,
        Py_ssize_t cg, Py_ssize_t kh, Py_ssize_t kw, Py_ssize_t s,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    # every thread needs all of da: only one may work on this kernel
    if part > 0:
        return
    slope(dy, y, da, filled(n, pad, dy) * o * oh * ow, activation)
    conv2d_input_grad(<const real*>da, w, <const real*>NULL, LINEAR, stride_h, stride_w, padding_top,
                      padding_left, padding_bottom, padding_right, dilation_h, dilation_w, groups, room, dx,
                      n, o, oh, ow, cg, kh, kw, c, ih, iw, s, pad, 0, 1)
    conv2d_weight_grad(x, <const real*>da, stride_h, stride_w, padding_top, padding_left, padding_bottom,
                       padding_right, dilation_h, dilation_w, groups, room, dw, db,
                       n, c, ih, iw, o, oh, ow, s, cg, kh, kw, pad, 0, 1)


cdef inline Py_ssize_t filled(Py_ssize_t n, Py_ssize_t pad, const real* like) noexcept nogil:
    """Rows that an image array has room for."""
    return blocks_of(n, block_rows(like)) * block_rows(like) if pad > 1 else n


cdef void conv_transpose2d_forward(
        const real* x, const real* w, const real* b, int activation,
        Py_ssize_t stride_h, Py_ssize_t stride_w, Py_ssize_t padding_top, Py_ssize_t padding_left,
        Py_ssize_t padding_bottom, Py_ssize_t padding_right, Py_ssize_t output_padding_h,
        Py_ssize_t output_padding_w, Py_ssize_t dilation_h, Py_ssize_t dilation_w,
        Py_ssize_t groups, real* room, real* y,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t og, Py_ssize_t kh, Py_ssize_t kw,
        Py_ssize_t o, Py_ssize_t s, Py_ssize_t oh, Py_ssize_t ow,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Gather g
    g.h = spreading(stride_h, padding_top, dilation_h, ih, kh)
    g.w = spreading(stride_w, padding_left, dilation_w, iw, kw)
    g.groups, g.channels, g.outputs, g.oh, g.ow = groups, c // groups, og, oh, ow
    g.w_out, g.w_in, g.w_h, g.w_w = kh * kw, ld(og * kh * kw, pad), kw, 1
    g.w_group, g.places = g.channels * g.w_in, 1
    one_place(&g, padding_top, padding_left)
    gather(&g, x, w, b, <const real*>NULL, activation, 0, 0, room, y, <real*>NULL, n, pad, part, parts)


cdef void conv_transpose2d_input_grad(
        const real* da, const real* w, const real* x, int activation,
        Py_ssize_t stride_h, Py_ssize_t stride_w, Py_ssize_t padding_top, Py_ssize_t padding_left,
        Py_ssize_t padding_bottom, Py_ssize_t padding_right, Py_ssize_t output_padding_h,
        Py_ssize_t output_padding_w, Py_ssize_t dilation_h, Py_ssize_t dilation_w,
        Py_ssize_t groups, real* room, real* dx,
        Py_ssize_t n, Py_ssize_t o, Py_ssize_t oh, Py_ssize_t ow, Py_ssize_t c, Py_ssize_t og, Py_ssize_t kh,
        Py_ssize_t kw, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t s,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Gather g
    g.h = reading(stride_h, padding_top, dilation_h, oh, kh)
    g.w = reading(stride_w, padding_left, dilation_w, ow, kw)
    g.groups, g.channels, g.outputs, g.oh, g.ow = groups, og, c // groups, ih, iw
    g.w_out, g.w_in, g.w_h, g.w_w = ld(og * kh * kw, pad), kh * kw, kw, 1
    g.w_group, g.places = g.outputs * g.w_out, 1
    gather(&g, da, w, <const real*>NULL, x, activation if x != NULL else LINEAR, 0, 0, room, dx, <real*>NULL,
           n, pad, part, parts)


cdef void conv_transpose2d_weight_grad(
        const real* x, const real* da,
        Py_ssize_t stride_h, Py_ssize_t stride_w, Py_ssize_t padding_top, Py_ssize_t padding_left,
        Py_ssize_t padding_bottom, Py_ssize_t padding_right, Py_ssize_t output_padding_h,
        Py_ssize_t output_padding_w, Py_ssize_t dilation_h, Py_ssize_t dilation_w,
        Py_ssize_t groups, real* room, real* dw, real* db,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t o, Py_ssize_t oh, Py_ssize_t ow,
        Py_ssize_t s, Py_ssize_t og, Py_ssize_t kh, Py_ssize_t kw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Correlation k
    k.groups, k.a_channels, k.x_channels, k.ah, k.aw, k.xh, k.xw = groups, c // groups, og, ih, iw, oh, ow
    k.kh, k.kw, k.stride_h, k.stride_w, k.padding_top, k.padding_left, k.dilation_h, k.dilation_w = (
        kh, kw, stride_h, stride_w, padding_top, padding_left, dilation_h, dilation_w)
    k.dw_a, k.dw_x = ld(og * kh * kw, pad), kh * kw
    k.dw_group = k.a_channels * k.dw_a
    k.sums_of_x, k.pool_h = True, 0
    correlate(&k, x, <const real*>NULL, <const real*>NULL, da, room, s, dw, db, n, pad, part, parts)


cdef void conv_transpose2d_backward(
        const real* dy, const real* x, const real* w, const real* y, int activation,
        Py_ssize_t stride_h, Py_ssize_t stride_w, Py_ssize_t padding_top, Py_ssize_t padding_left,
        Py_ssize_t padding_bottom, Py_ssize_t padding_right, Py_ssize_t output_padding_h,
        Py_ssize_t output_padding_w, Py_ssize_t dilation_h, Py_ssize_t dilation_w,
        Py_ssize_t groups, real* room, real* da, real* dx, real* dw, real* db,
        Py_ssize_t n, Py_ssize_t o, Py_ssize_t oh, Py_ssize_t ow, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw,
        Py_ssize_t og, Py_ssize_t kh, Py_ssize_t kw, Py_ssize_t s,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    if part > 0:
        return
    slope(dy, y, da, filled(n, pad, dy) * o * oh * ow, activation)
    conv_transpose2d_input_grad(
        <const real*>da, w, <const real*>NULL, LINEAR, stride_h, stride_w, padding_top, padding_left,
        padding_bottom, padding_right, output_padding_h, output_padding_w, dilation_h, dilation_w, groups,
        room, dx, n, o, oh, ow, c, og, kh, kw, ih, iw, s, pad, 0, 1)
    conv_transpose2d_weight_grad(
        x, <const real*>da, stride_h, stride_w, padding_top, padding_left, padding_bottom, padding_right,
        output_padding_h, output_padding_w, dilation_h, dilation_w, groups, room, dw, db,
        n, c, ih, iw, o, oh, ow, s, og, kh, kw, pad, 0, 1)


# -- weights of an upsampling and a convolution in one: small, so one thread makes them ------------

cdef void spread(const real* w, Py_ssize_t w_out, Py_ssize_t w_in, bint turned, real* v, Py_ssize_t v_row,
                 Py_ssize_t first, Py_ssize_t second, Py_ssize_t kh, Py_ssize_t kw, Py_ssize_t fh,
                 Py_ssize_t fw) noexcept nogil:
    """v[first, second] = w, each element added to a field of fh x fw."""
    cdef Py_ssize_t i, j, u, t, a, b, vw = kw + fw - 1
    cdef const real* kernel
    cdef real* made
    for i in range(first):
        for j in range(second):
            kernel = w + i * w_out + j * w_in
            made = v + i * v_row + j * (kh + fh - 1) * vw
            memset(made, 0, (kh + fh - 1) * vw * sizeof(real))
            for u in range(kh):
                for t in range(kw):
                    for a in range(fh):
                        for b in range(fw):
                            made[(u + a) * vw + t + b] += kernel[
                                (kh - 1 - u) * kw + kw - 1 - t if turned else u * kw + t]


cdef void collect(const real* dv, Py_ssize_t v_row, bint turned, real* dw, Py_ssize_t w_out, Py_ssize_t w_in,
                  Py_ssize_t first, Py_ssize_t second, Py_ssize_t kh, Py_ssize_t kw, Py_ssize_t fh,
                  Py_ssize_t fw) noexcept nogil:
    """dw = the sums of dv over those fields."""
    cdef Py_ssize_t i, j, u, t, a, b, vw = kw + fw - 1
    cdef const real* made
    cdef real* kernel
    cdef real total
    for i in range(first):
        for j in range(second):
            kernel = dw + i * w_out + j * w_in
            made = dv + i * v_row + j * (kh + fh - 1) * vw
            for u in range(kh):
                for t in range(kw):
                    total = 0
                    for a in range(fh):
                        for b in range(fw):
                            total += made[(u + a) * vw + t + b]
                    kernel[(kh - 1 - u) * kw + kw - 1 - t if turned else u * kw + t] = total


cdef void upsample_conv2d_weight(
        const real* w, Py_ssize_t factor_h, Py_ssize_t factor_w, real* v,
        Py_ssize_t o, Py_ssize_t c, Py_ssize_t kh, Py_ssize_t kw, Py_ssize_t vh, Py_ssize_t vw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    if part == 0:
        spread(w, kh * kw, ld(c * kh * kw, pad), True, v, ld(o * vh * vw, pad), c, o, kh, kw, factor_h,
               factor_w)


cdef void upsample_conv2d_weight_grad(
        const real* dv, Py_ssize_t factor_h, Py_ssize_t factor_w, real* dw,
        Py_ssize_t c, Py_ssize_t o, Py_ssize_t vh, Py_ssize_t vw, Py_ssize_t kh, Py_ssize_t kw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    if part == 0:
        collect(dv, ld(o * vh * vw, pad), True, dw, kh * kw, ld(c * kh * kw, pad), c, o, kh, kw,
                factor_h, factor_w)


cdef void upsample_conv_transpose2d_weight(
        const real* w, Py_ssize_t factor_h, Py_ssize_t factor_w, real* v,
        Py_ssize_t c, Py_ssize_t o, Py_ssize_t kh, Py_ssize_t kw, Py_ssize_t vh, Py_ssize_t vw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    if part == 0:
        spread(w, ld(o * kh * kw, pad), kh * kw, False, v, ld(o * vh * vw, pad), c, o, kh, kw, factor_h,
               factor_w)


cdef void upsample_conv_transpose2d_weight_grad(
        const real* dv, Py_ssize_t factor_h, Py_ssize_t factor_w, real* dw,
        Py_ssize_t c, Py_ssize_t o, Py_ssize_t vh, Py_ssize_t vw, Py_ssize_t kh, Py_ssize_t kw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    if part == 0:
        collect(dv, ld(o * vh * vw, pad), False, dw, ld(o * kh * kw, pad), kh * kw, c, o, kh, kw,
                factor_h, factor_w)


# -- pooling and upsampling: a plane (a channel of a block of rows, or of a row) at a time ----------

cdef inline Py_ssize_t lanes_of(Py_ssize_t pad, const real* like) noexcept nogil:
    return block_rows(like) if pad > 1 else 1


cdef inline Pooling pooling(Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t oh, Py_ssize_t ow, Py_ssize_t kernel_h,
                            Py_ssize_t kernel_w, Py_ssize_t stride_h, Py_ssize_t stride_w,
                            Py_ssize_t padding_top, Py_ssize_t padding_left) noexcept nogil:
    cdef Pooling k
    k.ih, k.iw, k.oh, k.ow, k.kernel_h, k.kernel_w = ih, iw, oh, ow, kernel_h, kernel_w
    k.stride_h, k.stride_w, k.padding_top, k.padding_left = stride_h, stride_w, padding_top, padding_left
    return k


cdef void max_pool2d_forward(
        const real* x, Py_ssize_t kernel_h, Py_ssize_t kernel_w, Py_ssize_t stride_h, Py_ssize_t stride_w,
        Py_ssize_t padding_top, Py_ssize_t padding_left, Py_ssize_t padding_bottom, Py_ssize_t padding_right,
        real* y, real* position,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t oh, Py_ssize_t ow,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Pooling k = pooling(ih, iw, oh, ow, kernel_h, kernel_w, stride_h, stride_w, padding_top,
                             padding_left)
    cdef Py_ssize_t lanes = lanes_of(pad, x), planes = blocks_of(n, lanes) * c, i, a, b
    for i in range(share(planes, part, parts), share(planes, part + 1, parts)):
        a, b = i * ih * iw * lanes, i * oh * ow * lanes
        if real is float:
            max_pool_f32(lanes, &k, x + a, y + b, position + b if position != NULL else NULL)
        else:
            max_pool_f64(lanes, &k, x + a, y + b, position + b if position != NULL else NULL)


cdef void max_pool2d_backward(
        const real* dy, const real* position, const real* y, int activation,
        Py_ssize_t kernel_h, Py_ssize_t kernel_w, Py_ssize_t stride_h, Py_ssize_t stride_w,
        Py_ssize_t padding_top, Py_ssize_t padding_left, Py_ssize_t padding_bottom, Py_ssize_t padding_right,
        real* dx,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t oh, Py_ssize_t ow, Py_ssize_t ih, Py_ssize_t iw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Pooling k = pooling(ih, iw, oh, ow, kernel_h, kernel_w, stride_h, stride_w, padding_top,
                             padding_left)
    cdef Py_ssize_t lanes = lanes_of(pad, dy), planes = blocks_of(n, lanes) * c, i, a, b
    for i in range(share(planes, part, parts), share(planes, part + 1, parts)):
        a, b = i * ih * iw * lanes, i * oh * ow * lanes
        if real is float:
            max_unpool_f32(lanes, &k, dy + b, position + b, y + b if y != NULL else NULL, activation, dx + a)
        else:
            max_unpool_f64(lanes, &k, dy + b, position + b, y + b if y != NULL else NULL, activation, dx + a)


cdef void avg_pool2d_forward(
        const real* x, Py_ssize_t kernel_h, Py_ssize_t kernel_w, Py_ssize_t stride_h, Py_ssize_t stride_w,
        Py_ssize_t padding_top, Py_ssize_t padding_left, Py_ssize_t padding_bottom, Py_ssize_t padding_right,
        int count_include_pad, real* y,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t oh, Py_ssize_t ow,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Pooling k = pooling(ih, iw, oh, ow, kernel_h, kernel_w, stride_h, stride_w, padding_top,
                             padding_left)
    cdef Py_ssize_t lanes = lanes_of(pad, x), planes = blocks_of(n, lanes) * c, i, a, b
    for i in range(share(planes, part, parts), share(planes, part + 1, parts)):
        a, b = i * ih * iw * lanes, i * oh * ow * lanes
        if real is float:
            avg_pool_f32(lanes, &k, count_include_pad, x + a, y + b)
        else:
            avg_pool_f64(lanes, &k, count_include_pad, x + a, y + b)


cdef void avg_pool2d_backward(
        const real* dy, const real* x, int activation,
        Py_ssize_t kernel_h, Py_ssize_t kernel_w, Py_ssize_t stride_h, Py_ssize_t stride_w,
        Py_ssize_t padding_top, Py_ssize_t padding_left, Py_ssize_t padding_bottom, Py_ssize_t padding_right,
        int count_include_pad, real* dx,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t oh, Py_ssize_t ow, Py_ssize_t ih, Py_ssize_t iw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Pooling k = pooling(ih, iw, oh, ow, kernel_h, kernel_w, stride_h, stride_w, padding_top,
                             padding_left)
    cdef Py_ssize_t lanes = lanes_of(pad, dy), planes = blocks_of(n, lanes) * c, i, a, b
    for i in range(share(planes, part, parts), share(planes, part + 1, parts)):
        a, b = i * ih * iw * lanes, i * oh * ow * lanes
        if real is float:
            avg_unpool_f32(lanes, &k, count_include_pad, dy + b, dx + a)
        else:
            avg_unpool_f64(lanes, &k, count_include_pad, dy + b, dx + a)
        if x != NULL:
            slope(<const real*>dx + a, x + a, dx + a, ih * iw * lanes, activation)


cdef void upsample2d_forward(
        const real* x, Py_ssize_t factor_h, Py_ssize_t factor_w, real* y,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t oh, Py_ssize_t ow,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t lanes = lanes_of(pad, x), planes = blocks_of(n, lanes) * c, i
    for i in range(share(planes, part, parts), share(planes, part + 1, parts)):
        if real is float:
            upsample_f32(lanes, ih, iw, factor_h, factor_w, x + i * ih * iw * lanes, y + i * oh * ow * lanes)
        else:
            upsample_f64(lanes, ih, iw, factor_h, factor_w, x + i * ih * iw * lanes, y + i * oh * ow * lanes)


cdef void upsample2d_backward(
        const real* dy, const real* x, int activation, Py_ssize_t factor_h, Py_ssize_t factor_w, real* dx,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t oh, Py_ssize_t ow, Py_ssize_t ih, Py_ssize_t iw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t lanes = lanes_of(pad, dy), planes = blocks_of(n, lanes) * c, i, a
    for i in range(share(planes, part, parts), share(planes, part + 1, parts)):
        a = i * ih * iw * lanes
        if real is float:
            downsum_f32(lanes, ih, iw, factor_h, factor_w, dy + i * oh * ow * lanes, dx + a)
        else:
            downsum_f64(lanes, ih, iw, factor_h, factor_w, dy + i * oh * ow * lanes, dx + a)
        if x != NULL:
            slope(<const real*>dx + a, x + a, dx + a, ih * iw * lanes, activation)


# -- batch normalisation of images: a channel at a time, as many planes as there are blocks ----------

cdef inline double plane_sum(const real* x, real shift, const real* b, real b_shift, bint square,
                             Py_ssize_t step, Py_ssize_t blocks, Py_ssize_t places, Py_ssize_t lanes,
                             Py_ssize_t valid) noexcept nogil:
    if real is float:
        return plane_sum_f32(x, shift, b, b_shift, square, step, blocks, places, lanes, valid)
    else:
        return plane_sum_f64(x, shift, b, b_shift, square, step, blocks, places, lanes, valid)


cdef inline void scale_plane(const real* x, real* y, Py_ssize_t size, real shift, real scale, real offset,
                             int activation) noexcept nogil:
    """y = f((x - shift) scale + offset)."""
    if real is float:
        scale_plane_f32(x, y, size, shift, scale, offset)
    else:
        scale_plane_f64(x, y, size, shift, scale, offset)
    if activation != LINEAR:
        activate(<const real*>y, y, 0, 1, size, activation)


cdef void batchnorm2d_forward(
        const real* x, const real* gamma, const real* beta, int activation, double epsilon, double momentum,
        real* running_mean, real* running_var, real* y, real* mean, real* inv_std,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t lanes = lanes_of(pad, x), blocks = blocks_of(n, lanes), valid = n - (blocks - 1) * lanes
    cdef Py_ssize_t size = ih * iw * lanes, step = c * size, i, b
    cdef double count = <double>n * ih * iw
    cdef double average, var
    cdef real scale
    for i in range(share(c, part, parts), share(c, part + 1, parts)):
        # what is left of the first number is small, so is its rounding
        average = x[i * size] + plane_sum(x + i * size, x[i * size], <const real*>NULL, <real>0, False, step,
                                          blocks, ih * iw, lanes, valid) / count
        mean[i] = <real>average
        # the mean rounded to its dtype is a little beside: the square of that is taken off
        var = plane_sum(x + i * size, mean[i], <const real*>NULL, <real>0, True, step, blocks, ih * iw, lanes,
                        valid) / count - (average - mean[i]) * (average - mean[i])
        inv_std[i] = <real>(1 / sqrt(var + epsilon))
        scale = gamma[i] * inv_std[i]
        running_mean[i] += <real>momentum * (mean[i] - running_mean[i])
        running_var[i] += <real>momentum * (<real>(var * count / max(count - 1, 1)) - running_var[i])
        for b in range(blocks):
            scale_plane(x + i * size + b * step, y + i * size + b * step, size, mean[i], scale, beta[i],
                        activation)


cdef void batchnorm2d_inference(
        const real* x, const real* gamma, const real* beta, const real* running_mean, const real* running_var,
        int activation, double epsilon, real* y,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t lanes = lanes_of(pad, x), blocks = blocks_of(n, lanes), size = ih * iw * lanes, i, b, at
    cdef real scale
    for i in range(share(c, part, parts), share(c, part + 1, parts)):
        scale = gamma[i] / root(running_var[i] + <real>epsilon)
        for b in range(blocks):
            at = (b * c + i) * size
            scale_plane(x + at, y + at, size, running_mean[i], scale, beta[i], activation)


cdef void batchnorm2d_backward(
        const real* dy, const real* x, const real* gamma, const real* y, const real* mean,
        const real* inv_std, int activation, real* dx, real* dgamma, real* dbeta,
        Py_ssize_t n, Py_ssize_t c, Py_ssize_t ih, Py_ssize_t iw,
        Py_ssize_t pad, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    cdef Py_ssize_t lanes = lanes_of(pad, x), blocks = blocks_of(n, lanes), valid = n - (blocks - 1) * lanes
    cdef Py_ssize_t size = ih * iw * lanes, step = c * size, i, b, q, at
    cdef double count = <double>n * ih * iw
    cdef double total, along
    cdef real by_da, by_one, by_h
    for i in range(share(c, part, parts), share(c, part + 1, parts)):
        for b in range(blocks):
            at = b * step + i * size
            slope(dy + at, y + at, dx + at, size, activation)
        total = plane_sum(<const real*>dx + i * size, <real>0, <const real*>NULL, <real>0, False, step,
                          blocks, ih * iw, lanes, valid)
        along = plane_sum(x + i * size, mean[i], <const real*>dx + i * size, <real>0, True, step, blocks,
                          ih * iw, lanes, valid) * inv_std[i]
        dbeta[i] = <real>total
        dgamma[i] = <real>along
        by_da = gamma[i] * inv_std[i]
        by_one = <real>(total / count)
        by_h = <real>(along / count) * inv_std[i]
        for b in range(blocks):
            at = b * step + i * size
            for q in range(at, at + size):
                dx[q] = by_da * (dx[q] - by_one - (x[q] - mean[i]) * by_h)
        if lanes > 1:  # nothing flows to rows that are not there
            if real is float:
                clear_lanes_f32(dx + i * size + (blocks - 1) * step, ih * iw, valid)
            else:
                clear_lanes_f64(dx + i * size + (blocks - 1) * step, ih * iw, valid)
