"""The mutations: data only. m(id, crate, file, edits, args, expected, batch=None, probe=False, timeout_counts=False)
edits: list of (old, new) or (old, new, occurrence index from 0); without an index `old` must occur exactly once."""
MUTATIONS = []


def m(id, crate, file, edits, args, expected, **more):
    if isinstance(edits, tuple):
        edits = [edits]
    if isinstance(expected, str):
        expected = expected.split()
    MUTATIONS.append(dict(id=id, crate=crate, file=file, edits=edits, args=args, expected=expected,
                          batch=more.get("batch"), probe=more.get("probe", ""),
                          timeout_counts=more.get("timeout_counts", False), opt_in=more.get("opt_in", "")))


def args(crate, *targets):
    out = ["-p", crate]
    for t in targets:
        out += ["--lib"] if t == "lib" else ["--test", t]
    return out


# ---------------------------------------------------------------- losses
P, S = "abkd-losses", "crates/losses/src/"
GOLD = "values_and_gradients_are_those_of_the_released_losses"
BOTH = "both_implementations_give_the_published_values"
SLOPE = "gradients_are_the_slopes_of_the_values"
ZERO = "zero_at_equality_positive_elsewhere_and_blind_to_a_shift"
MASK = "masked_entries_are_left_out_of_value_and_gradient"
LARGE = "large_and_infinite_logits_stay_finite"
FAMILY = "the_alpha_beta_family_contains_the_kl_divergences_and_is_continuous"
FORM = "the_differentiable_form_has_the_kernels_gradient"
UPSTREAM = "gradients_are_the_kernels_times_what_comes_from_above"
BEHIND = "behind_a_product_parameters_get_the_gradients_of_plain_operations"
ANYWHERE = "the_largest_logit_may_be_anywhere"
ORDER = "no_divergence_depends_on_the_order_of_the_tokens"
FLAT = "no_entry_of_a_flat_row_takes_the_rounding_of_the_others"
SMALLB = "a_small_beta_keeps_the_digits_of_the_value"
ALPHAN = "alpha_nets_members_keep_their_digits"
SURE = "forward_kl_of_two_models_sure_of_one_token_keeps_its_digits"
HALF1 = "logits_of_half_precision_give_what_they_give_in_f32"
HALF2 = "logits_of_half_precision_stay_what_they_are"
AKL = "the_head_is_that_of_the_sorted_row"
ALL = args(P, "golden", "properties", "digits", "differentiable")
GP = args(P, "golden", "properties")
GPD = args(P, "golden", "properties", "digits")

m("L01-reverse-kl-sign", P, S + "pointwise.rs", ("let reverse = q * (lq - lp);", "let reverse = q * (lp - lq);"),
  ALL, [GOLD, BOTH, SLOPE, ZERO, MASK, FAMILY, BEHIND])
m("L02-ab-divided-by-alpha", P, S + "pointwise.rs", ("inverse_beta: 1.0 / beta,", "inverse_beta: 1.0 / alpha,"),
  GP, [GOLD, BOTH, MASK, LARGE, FAMILY])
m("L03-gradient-without-q-sum-h", P, S + "row/passes.rs",
  ("*out = q.mul_add(-low, q.mul_add(-high, *h));", "*out = q.mul_add(-low, *h);"),
  ALL, [GOLD, BOTH, SLOPE, ZERO, MASK, FLAT, SMALLB, ALPHAN, BEHIND])
m("L04-forward-kl-peak-as-difference", P, S + "row/passes.rs",
  ("if norms.p.peak == peak {", "if false && norms.p.peak == peak {"), args(P, "digits"), [SURE])
m("L05-cross-entropy-peak-as-difference", P, S + "row.rs", ("-norm.rest as f32", "out[label] - 1.0"),
  args(P, "digits"), ["a_row_with_nearly_all_mass_in_one_token_keeps_its_digits"])
m("L06-log-sum-from-shift-not-max", P, S + "row/passes.rs",
  ("ln_sum: (others / top).ln_1p() as f32,", "ln_sum: (others + top).ln() as f32,"), args(P, "digits"), [ANYWHERE, ORDER])
m("L07-late-peak-not-shifted-again", P, S + "row/passes.rs", ("const FAR: f32 = 16.0;", "const FAR: f32 = 512.0;"),
  args(P, "digits"), [ANYWHERE, ORDER])
m("L08-teacher-mask-ignored", P, S + "row/passes.rs",
  ("let there = (z != f32::NEG_INFINITY) & (t != f32::NEG_INFINITY);",
   "let there = (z != f32::NEG_INFINITY) & (t == t);"),
  args(P, "properties", "differentiable"), [MASK, LARGE, UPSTREAM])
m("L09-dropped-part-not-given-back", P, S + "row/passes.rs",
  ("let dropped = if norms.p.masked() { d.dropped() } else { 0.0 };",
   "let dropped = if norms.p.masked() { 0.0 * d.dropped() } else { 0.0 };"), args(P, "properties"), [MASK])
m("L10-reference-alpha-beta-gradient-sign", P, S + "reference.rs", ("(f * factor, phi * -factor)", "(f * factor, phi * factor)"),
  GP, [GOLD, BOTH, MASK])
m("L11-reference-mask-of-h", P, S + "reference.rs",
  ("let h = h.mask_fill(pair.left_out.clone(), 0.0);", "let h = h.mask_fill(pair.left_out.clone(), 1.0);"),
  args(P, "properties"), [MASK])
m("L12-official-factor-of-the-limit-left-out", P, S + "row.rs", ("factor: official(alpha),", "factor: official(1.0),"),
  args(P, "golden"), [GOLD])
m("L13-bdkd-entropies-compared-the-wrong-way", P, S + "row.rs",
  ("dispatch_entropy(row.q, row.scale_q) > dispatch_entropy(row.p, row.scale_p);",
   "dispatch_entropy(row.q, row.scale_q) < dispatch_entropy(row.p, row.scale_p);"), GP, [GOLD, BOTH])
m("L14-akl-official-crossing-token", P, S + "row/akl.rs",
  ("Fidelity::Official => (likeliest_is_there && i == 0) || mass < mu,",
   "Fidelity::Official => (likeliest_is_there && i == 0) || before < mu,"), args(P, "lib", "golden"), [AKL, GOLD])
m("L15-akl-paper-crossing-token", P, S + "row/akl.rs", ("Fidelity::Paper => before < mu,", "Fidelity::Paper => mass < mu,", 0),
  args(P, "lib", "properties"), [AKL, BOTH])
m("L16-alphanet-takes-the-smaller", P, S + "row.rs",
  ("let (member, sum) = if gain > 0.0 { (1, two) } else { (0, one) };",
   "let (member, sum) = if gain < 0.0 { (1, two) } else { (0, one) };"), GPD, [GOLD, BOTH, ALPHAN])
m("L17-alphanet-official-row-by-row", P, S + "row.rs", ("Fidelity::Official => all,", "Fidelity::Official => all * 0.0 + (two - one),"),
  args(P, "golden"), [GOLD])
m("L18-series-term-dropped", P, S + "pointwise.rs", ("sum = alpha * sum + power;", "sum = 0.0 * sum + power;"),
  args(P, "digits"), [SMALLB, ALPHAN])
m("L19-small-beta-divided-by-beta", P, S + "row.rs", ("const SMALL_BETA: f64 = 0.05;", "const SMALL_BETA: f64 = 0.0;"),
  args(P, "digits"), [SMALLB])
m("L20-bf16-gradient-truncated", P, S + "row/logit.rs",
  ("row.convert_from_f32_slice(scratch);",
   "for (r, s) in row.iter_mut().zip(scratch.iter()) { *r = <$ty>::from_bits((s.to_bits() >> 16) as u16); }"),
  args(P, "digits", "properties"), [HALF1, HALF2])
m("L21-bf16-teacher-of-other-type-rounded", P, S + "lib.rs",
  ("DType::BF16 if teacher.dtype() == dtype => on_host::<bf16>,", "DType::BF16 => on_host::<bf16>,"),
  args(P, "properties"), [HALF2])
m("L22-upstream-gradient-ignored", P, S + "op.rs",
  ("let grad = B::float_mul(grad, upstream);", "let _ = upstream;"), args(P, "differentiable", "properties"),
  [UPSTREAM, BEHIND, "a_gradient_has_the_type_of_the_logits", FORM])
m("L23-value-outside-the-graph", P, S + "op.rs", ("Ok(differentiable(student, rows))", "Ok(differentiable(student.inner(), rows))", 0),
  args(P, "differentiable", "properties"),
  [UPSTREAM, BEHIND, "a_teacher_in_a_graph_is_a_constant", "without_a_graph_or_rows_there_is_a_value_alone", FORM])
m("L24-nan-row-accepted", P, S + "row/passes.rs", ("if !others.is_finite() {", "if others.is_infinite() {"),
  args(P, "properties", "differentiable"),
  ["rows_that_are_no_distribution_are_named", "rows_that_are_no_distribution_are_errors_here_too"])
m("L25-division-by-alpha-zero", P, S + "pointwise.rs", ("if self.alpha.abs() < 1e-30 {", "if self.alpha.abs() < 0.0 {"),
  args(P, "properties", "digits"), ["a_vocabulary_of_one_and_no_rows_give_numbers_or_nothing", ALPHAN])
m("L26-jensen-weights-swapped", P, S + "row.rs", ("student: lambda as f32,", "student: (1.0 - lambda) as f32,"),
  GP, [GOLD, BOTH, SLOPE, MASK])
m("L27-tvd-gradient-half-missing", P, S + "pointwise.rs", ("(0.5 * (p - q).abs(), 0.5 * q * sign)", "(0.5 * (p - q).abs(), q * sign)"),
  GP, [GOLD, BOTH])
m("L28-shared-and-own-mixed-up", P, S + "host.rs",
  ("if !flex.is_unique() && flex.as_slice::<L>().is_some() {", "if flex.is_unique() && flex.as_slice::<L>().is_some() {"),
  args(P, "lib", "memory"), ["views_are_read_as_they_are_and_what_others_hold_stays", "a_call_takes_its_inputs_and_one_gradient"])
m("L29-parameter-b-writes-a", P, S + "divergence.rs", ('(Self::AlphaNet { b, .. }, "b") => Some(b),', '(Self::AlphaNet { a, .. }, "b") => Some(a),'),
  args(P, "lib"), ["every_id_names_itself_and_takes_its_own_parameters"], batch="losses-ids")
m("L32-peaks-gradient-as-difference", P, S + "row/passes.rs",
  ("(f64::from(sums.peak_h) * norm.rest - ", "(f64::from(sums.peak_h) * f64::from(1.0 - norm.top) - "), args(P, "digits"),
  ["every_gradient_keeps_the_digits_of_a_peak"])
m("L33-log-sum-five-digits", P, S + "row/passes.rs",
  ("ln_sum: (others / top).ln_1p() as f32,", "ln_sum: ((others / top).ln_1p() + 1e-5) as f32,"), args(P, "accuracy"),
  ["values_and_gradients_are_those_of_f64"])
m("L30-lambda-range-unchecked", P, S + "divergence.rs", ('"weight" | "lambda" | "mu" => (', '"weight" | "mu" => ('),
  args(P, "lib"), ["errors_name_what_is_wrong_and_what_would_be_right"], batch="losses-ids")
m("L31-reverse-kl-peak-as-difference", P, S + "row/passes.rs",
  ("(f64::from(sums.peak_h) * norm.rest -", "(f64::from(sums.peak_h) * f64::from(1.0 - norm.top) -"), GPD, [BOTH],
  probe="digits of the general gradient at the peak (sum path): the digits tests look at forward KL and cross-entropy alone")
W = ["-p", P, "--features", "wgpu", "--lib", "--test", "wgpu"]
m("W01-wgpu-peak-gradient-sign", P, S + "cube/kernel.rs",
  ("grad[start + j] = at_peak * q.rest - q.scale * others;", "grad[start + j] = at_peak * q.rest + q.scale * others;"),
  W, ["values_and_gradients_are_those_of_the_cpu_kernel", "logits_need_not_lie_row_after_row"], opt_in="wgpu")
m("W02-wgpu-cross-entropy-sign", P, S + "cube/kernel.rs",
  ("value[row] = q.ln_sum - (logit - q.max);", "value[row] = q.ln_sum + (logit - q.max);"),
  W, ["cross_entropies_are_those_of_the_cpu_kernel"], opt_in="wgpu")
m("W03-wgpu-log-of-share-0", P, S + "cube.rs", ("share.max(1e-30).ln()", "share.ln()"),
  W, ["large_logits_and_shares_of_0_stay_finite"], opt_in="wgpu")
m("W04-wgpu-serves-akl", P, S + "cube.rs",
  ("Divergence::Akl { .. } | Divergence::AlphaNet { .. } => return None,",
   "Divergence::Akl { .. } => (Formula::TwoKl, [0.5, 0.5, 1.0]),\n        Divergence::AlphaNet { .. } => return None,"),
  W, ["what_the_kernel_does_not_serve_is_the_reference_implementations",
      "wgpu_is_served_for_every_divergence_but_akl_and_flex_for_none"], opt_in="wgpu")
m("W05-wgpu-teacher-named-student", P, S + "cube/kernel.rs",
  ("out = status::TEACHER_NOT_FINITE.runtime();", "out = status::STUDENT_NOT_FINITE.runtime();"),
  W, ["rows_that_are_no_distribution_are_named"], opt_in="wgpu")

# ---------------------------------------------------------------- models
P, S = "abkd-models", "crates/models/src/"
LOGITS = "logits_and_greedy_tokens_are_those_of_transformers"
HOST = "logits_are_those_of_the_tensors"
ADAPT = "adapters_add_what_they_add_to_tensors"
PEFT = "an_adapter_of_peft_gives_pefts_logits_and_is_written_as_peft_writes_it"
BATCHED = "an_answer_does_not_depend_on_its_batch"
SPAN = "span_counts_positions_after_the_padding_and_masks_it"
MEAN = "it_is_the_mean_of_the_values_that_are_seen"
PACKED = "a_product_is_that_of_the_matrices"
ACT = "activations_have_burns_values_and_gradients"
LG = args(P, "lib", "golden")
LIB = args(P, "lib")

m("M01-causal-mask-off-by-one", P, S + "layers.rs",
  ("values[start + past + query + 1..start + keys].fill(MASKED);", "values[start + past + query..start + keys].fill(MASKED);"),
  LG, [SPAN, HOST, ADAPT, LOGITS, PEFT])
m("M02-positions-count-padding", P, S + "layers.rs", ("map(move |t| t.saturating_sub(pad))", "map(move |t| t.max(pad))"),
  LG, [SPAN, HOST, LOGITS])
m("M03-padding-seen-in-decoding", P, S + "attention.rs", ("self.pad.min(end - 1)..end", "0..end"), LG, [MEAN, HOST, BATCHED])
m("M04-rotation-sign-in-decoding", P, S + "attention.rs",
  ("(*a * cos - *b * sin, *b * cos + *a * sin)", "(*a * cos + *b * sin, *b * cos - *a * sin)"), LG, [HOST, ADAPT])
m("M05-attention-scale", P, S + "attention.rs", ("let scale = 1.0 / (dh as f32).sqrt();", "let scale = 1.0 / (dh as f32);"),
  LG, [MEAN, HOST, ADAPT])
m("M06-bias-dropped-in-packed-product", P, S + "packed.rs",
  ("Put::Over => to.for_each(|((to, sum), bias)| *to = sum + bias),", "Put::Over => to.for_each(|((to, sum), _)| *to = *sum),"),
  LG, [HOST, LOGITS])
m("M07-residual-overwritten", P, S + "packed.rs",
  ("Put::Onto => to.for_each(|((to, sum), bias)| *to += sum + bias),", "Put::Onto => to.for_each(|((to, sum), bias)| *to = sum + bias),"),
  LG, [PACKED, HOST, ADAPT, LOGITS])
m("M08-bf16-pair-swapped", P, S + "packed.rs",
  ("*cell |= bf16_bits(x) << (16 * (i % 2));", "*cell |= bf16_bits(x) << (16 * ((i + 1) % 2));"),
  LIB, [PACKED, HOST])
m("M09-decoder-norm-bias-dropped", P, S + "decoder/parts.rs", (".mul_add(*weight, *bias)", ".mul_add(*weight, 0.0 * *bias)"),
  LG, [HOST, LOGITS])
m("M10-layer-norm-epsilon", P, S + "layers.rs",
  ("layer_norm(x, self.weight.val(), Some(self.bias.val()), epsilon)",
   "layer_norm(x, self.weight.val(), Some(self.bias.val()), 100.0 * epsilon)"), LG, [HOST, LOGITS])
m("M11-rms-epsilon-dropped", P, S + "layers.rs",
  ("(mean_square + epsilon).sqrt().recip()", "(mean_square + 0.0 * epsilon).sqrt().recip()"), LIB, ["norms_add_epsilon_before_the_root"])
m("M12-adapter-scale-dropped-in-decoding", P, S + "decoder/parts.rs",
  ("to.for_each(|(to, more)| *to += adapter.scale * more);", "to.for_each(|(to, more)| *to += more);"), LIB, [ADAPT])
m("M13-lora-scale-not-over-r", P, S + "lora.rs", ("scale: config.alpha / r as f64,", "scale: config.alpha,"),
  args(P, "golden"), [PEFT])
m("M14-silu-slope-term-dropped", P, S + "ops.rs",
  ("*g *= (x * s).mul_add(1.0 - s, s);", "*g *= x.mul_add(1.0 - s, s);"), LIB, [ACT])
m("M15-silu-sign", P, S + "ops.rs", ("*x *= sigmoid(*x);", "*x *= sigmoid(-*x);"),
  LG, [ACT, "a_view_of_other_numbers_is_read_as_it_is", LOGITS, PEFT])
m("M16-gelu-constant", P, S + "ops.rs", ("const CUBE: f32 = (0.044715 * DOUBLE_ROOT) as f32;", "const CUBE: f32 = (0.0347 * DOUBLE_ROOT) as f32;"),
  LG, [ACT, LOGITS])
m("M17-activation-missing-in-a-graph", P, S + "ops.rs",
  ("prep.finish((x.clone(), f), B::activation(x, f))", "prep.finish((x.clone(), f), x)"),
  LIB, [ACT, "without_a_graph_the_values_are_the_same"])
m("M18-softmax-slope-order", P, S + "ops.rs", ("*g = y * (*g - mean);", "*g = y * *g - mean;"),
  LIB, ["a_masked_softmax_has_burns_values_and_gradients"])
m("M19-drawn-block", P, S + "draw.rs", ("if left < sum {", "if left > sum {"),
  LIB, ["a_draw_follows_the_cumulative_probability", "over_many_blocks_it_is_the_inverse_of_the_cumulative_probability"])
B = dict(batch="models-unit")
m("M20-mask-for-a-single-step", P, S + "layers.rs", ("let bias = (width > 1 || padded).then(|| {", "let bias = (width > 0 || padded).then(|| {"),
  LIB, ["a_single_step_without_padding_needs_no_mask"], **B)
m("M21-bf16-ties-up", P, S + "layers.rs", ("bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16", "bits.wrapping_add(0x8000) >> 16"),
  LIB, ["bfloat16_is_rounded_as_half_does_it"], **B)
m("M22-top-p-without-the-crossing-token", P, S + "draw.rs",
  ("let open = mass < decoding.top_p * total;", "let open = mass + f64::from(*w) < decoding.top_p * total;"),
  LIB, ["top_k_and_top_p_leave_the_likeliest"], **B)
m("M23-temperature-multiplies", P, S + "draw.rs",
  ("let scale = 1.0 / decoding.temperature as f32;", "let scale = decoding.temperature as f32;"), LIB, ["temperature_sharpens"], **B)
m("M24-nan-not-seen", P, S + "draw.rs",
  ("bad[i] |= u32::from(chunk[i].is_nan());", "bad[i] |= u32::from(chunk[i].is_infinite() && chunk[i].is_nan());"),
  LIB, ["what_is_not_a_number_is_refused"], **B)
m("M25-ngram-last-start", P, S + "generate.rs", ("(0..length + 1 - n)", "(0..length - n)"), LIB, ["an_ngram_does_not_occur_twice"], **B)
m("M26-values-of-gone-rows-kept", P, S + "kv_cache.rs",
  ("*values = values.clone().select(0, ids);", "*values = values.clone().slice([0..ids.dims()[0]]);"),
  LIB, ["chosen_rows_are_kept_in_their_order"], **B)
m("M27-parameters-without-a-bias", P, S + "config.rs", ("let attention = 4 * d * d + 4 * d;", "let attention = 4 * d * d + 3 * d;"),
  LIB, ["parameters_are_counted_as_the_model_has_them"], **B)
m("M28-box-muller-without-2", P, S + "params.rs", ("(-2.0 * u.ln()).sqrt()", "(-u.ln()).sqrt()"),
  LIB, ["normal_numbers_have_mean_0_and_variance_1"], **B)
m("M29-checkpointing-embedding-gradient-dropped", P, S + "checkpointing.rs", ("if x.is_tracked() {", "if !x.is_tracked() {"),
  LIB, ["gradients_are_those_of_the_pass_with_its_graph"], **B)
m("M30-transpose-places", P, S + "params.rs", ("out[c * rows + r] = x;", "out[r * cols + c] = x;"), LG, ["transposes", LOGITS, PEFT])
m("M31-random-numbers-by-place-in-call", P, S + "generate.rs",
  ("key: mix(mix(seed) ^ examples[index]),", "key: mix(mix(seed) ^ index as u64),"), args(P, "golden"), [BATCHED])
m("M32-f16-read-as-bf16", P, S + "checkpoint.rs",
  ("Dtype::F16 => Ok(halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),",
   "Dtype::F16 => Ok(halves().map(|b| bf16::from_le_bytes(*b).to_f32() + 0.0 * f16::ONE.to_f32()).collect()),"),
  args(P, "golden"), ["sharded_and_half_precision_files_are_read"], batch="models-files")
m("M33-saved-as-tied", P, S + "checkpoint.rs",
  ('json["tie_word_embeddings"] = config.tied().into();', 'json["tie_word_embeddings"] = true.into();'),
  args(P, "golden"), ["a_saved_checkpoint_loads_with_the_same_numbers"], batch="models-files")
m("M34-unused-tensors-accepted", P, S + "checkpoint.rs", ("if !unused.is_empty() {", "if unused.len() > 1000 {"),
  args(P, "golden"), ["a_broken_checkpoint_is_an_error_that_names_the_place"], batch="models-files")
m("M35-bf16-products-in-f32", P, S + "layers.rs",
  (".cast(DType::BF16)\n                .matmul(b.cast(DType::BF16))\n                .cast(DType::F32),", ".matmul(b),"),
  args(P, "golden"), ["half_precision_stays_near_and_is_not_the_same"], batch="models-files")
m("M36-dropped-graphs-stay-in-memory", P, S + "checkpointing.rs",
  ("let _ = x.slice([0..1, 0..1, 0..1]).sum().backward();", "let _ = x;"),
  args(P, "checkpointing"), ["the_peak_is_far_below_that_of_the_graph"])
m("M37-packed-panel-of-the-transposed", P, S + "packed.rs", ("set(&mut panel[i / per][j], i, x);", "set(&mut panel[i / per][WIDTH - 1 - j], i, x);"), LIB, [PACKED, HOST])
m("M38-size-of-0-accepted", P, S + "config.rs", ("*size == Some(0))", "*size == Some(usize::MAX))"), LIB, ["a_size_of_0_is_refused_by_its_key"])
m("M39-heads-need-not-divide", P, S + "config.rs", ("if !c.n_embd.is_multiple_of(c.n_head) {", "if c.n_embd < c.n_head {"),
  LIB, ["heads_that_do_not_fit_are_refused_by_their_key"])
m("M40-portable-products-not-rounded", P, S + "packed.rs", ("round(sums.as_flattened_mut());", "round(&mut []);"), LIB, [PACKED])
m("M41-portable-factors-of-the-row-before", P, S + "packed.rs", ("rounded.copy_from_slice(values);", "rounded.copy_from_slice(values);\n                    rounded[0] = 0.0;"),
  LIB, ["without_the_processors_bfloat16_they_are_too"])

# ---------------------------------------------------------------- training
P, S = "abkd-training", "crates/training/src/"
TRAJ = "twelve_steps_follow_the_golden_trajectory"
PARTS = "parts_of_a_batch_make_the_update_of_the_whole"
LOWERS = "each_method_lowers_the_reverse_kl_to_the_teacher"
LIB = args(P, "lib")
m("T01-clipped-per-tensor", P, S + "optim.rs",
  [("self.to.register(param.id, grad * self.factor);",
    "let n = f64::from(grad.clone().square().sum().into_scalar::<f32>()).sqrt();\n"
    "                let by = (self.factor / (n + 1e-6)).min(1.0);\n"
    "                self.to.register(param.id, grad * by);"),
   ("        factor,\n    };", "        factor: limit,\n    };")],
  LIB, ["all_gradients_are_clipped_by_their_norm_together"])
m("T02-norm-without-root", P, S + "optim.rs",
  ("sums.iter().map(|&s| f64::from(s)).sum::<f64>().sqrt()", "sums.iter().map(|&s| f64::from(s)).sum::<f64>()"),
  args(P, "lib", "trajectory"), ["all_gradients_are_clipped_by_their_norm_together", TRAJ])
m("T03-second-moment-bias-not-corrected", P, S + "optim/fused.rs", ("(*v / n.bias_2).sqrt()", "(*v).sqrt()"),
  args(P, "lib", "trajectory"), ["it_is_burns_bit_by_bit", TRAJ])
m("T04-cosine-rises", P, S + "optim.rs", ("(1.0 + turn.cos()) / 2.0", "(1.0 - turn.cos()) / 2.0"),
  args(P, "lib", "trajectory"), ["the_cosine_starts_at_the_peak_and_ends_near_the_floor", TRAJ])
m("T05-head-gradient-not-scaled", P, S + "head.rs", ("d_head: d_head.map(|d| d * scale),", "d_head,"), args(P, "trajectory"), [TRAJ])
m("T06-targets-off-by-one", "abkd-data", "crates/data/src/batch.rs",
  ("(start + t - 1, s.tokens[t])", "(start + t.min(lengths[row] - 1), s.tokens[t])"),
  ["-p", "abkd-data", "-p", P, "--lib"], ["inputs_and_targets_are_shifted_by_one", "expected_labels_are_the_next_tokens_and_keep_the_end"])
m("T07-weight-decay-on-vectors", P, S + "optim.rs",
  (".with_group(group, optimizer(0.0), None)", ".with_group(group, optimizer(weight_decay), None)"), LIB, ["matrices_and_adapters_decay_and_biases_and_norms_do_not"])
m("T08-loss-of-the-last-part-alone", P, S + "step.rs", ("loss += value;", "loss = value;"), args(P, "methods"), [PARTS])
m("T09-checkpointed-gradient-sign", P, S + "step.rs",
  ("pass.backward(spread_targets(d_rows, batch))", "pass.backward(spread_targets(d_rows.neg(), batch))"),
  args(P, "methods"), [PARTS, "recomputed_activations_give_the_same_student"])
m("T10-learning-rate-dropped", P, S + "step.rs",
  ("optimizer.step(how.learning_rate, student, grads)", "optimizer.step(0.0 * how.learning_rate, student, grads)"),
  args(P, "methods", "trajectory"), [LOWERS, TRAJ, "text_adds_a_language_modelling_term", "adapters_alone_are_trained_and_read_back_the_same"])
m("T11-text-term-without-weight", P, S + "methods/mod.rs", ("Some((Objective::CrossEntropy, settings.lm_coef))", "Some((Objective::CrossEntropy, 0.0 * settings.lm_coef))"),
  args(P, "methods"), ["text_adds_a_language_modelling_term"], batch="training-methods")
m("T12-moments-not-restored", P, S + "state.rs",
  ("let optimizer = optimizer(&student)\n        .load(dir.join(\"optimizer.bpk\"))\n        .map_err(fail)?;", "let optimizer = optimizer(&student);"),
  args(P, "methods"), ["a_stopped_run_ends_with_the_bits_of_an_undisturbed_one"], batch="training-methods")
m("T13-cache-place-off-by-one-sequence", P, S + "cache.rs", ("(example, (first - n, n))", "(example, ((first - n).saturating_sub(1), n))"),
  args(P, "lib", "methods"), ["rows_are_the_teachers_and_a_stopped_run_goes_on", "the_cached_teacher_teaches_as_the_running_one"])
m("T14-lora-merge-sign", "abkd-models", "crates/models/src/lora.rs",
  ("linear.weight.clone().map(|w| w + delta.clone())", "linear.weight.clone().map(|w| w - delta.clone())"),
  ["-p", "abkd-models", "-p", P, "--test", "golden", "--test", "methods"],
  [PEFT, "adapters_alone_are_trained_and_read_back_the_same"])
m("T15-head-in-one-chunk", P, S + "head.rs",
  ("let rows = (bytes / (4 * vocab)).clamp(1, n.max(1));", "let rows = (bytes / 4 * vocab).clamp(1, n.max(1));"),
  args(P, "memory"), ["four_thousand_rows_of_fifty_thousand_logits_fit_into_a_gigabyte"])
m("T36-heads-gradient-of-the-last-chunk", P, S + "head.rs", ("Some(sum) => sum + part,", "Some(_) => part,"),
  LIB, ["chunks_have_the_loss_and_the_gradients_of_the_whole", "a_tied_embedding_has_the_gradients_of_both_its_uses"])
m("T37-member-of-the-first-row-alone", P, S + "head.rs", ("            *sum += f64::from(rows.sum()", "            *sum = f64::from(rows.sum()"),
  LIB, ["alpha_net_chooses_for_the_whole_batch_or_row_by_row"])
m("T38-policy-rows-of-the-chunk", P, S + "head.rs", ("                .zip(range)\n", "                .zip(0..)\n"),
  LIB, ["a_policys_rows_keep_their_numbers_over_the_chunks"])
m("T40-hidden-gradient-in-f32", P, S + "head.rs", ("d_hidden.push(student.precision.matmul(grad.clone(), student.head.clone()));", "d_hidden.push(grad.clone().matmul(student.head.clone().cast(DType::F32)));"),
  LIB, ["a_head_rounded_once_is_a_head_rounded_in_every_product"])
m("T41-row-of-the-chunk", P, S + "error.rs", ("                *row += before;\n            }\n            Self::Loss(error)", "                *row += 0 * before;\n            }\n            Self::Loss(error)"),
  LIB, ["an_error_names_the_row_of_all_rows"])
m("T42-teacher-named-student", P, S + "error.rs", ("*model = abkd_losses::Model::Teacher;", "*model = abkd_losses::Model::Student;"),
  LIB, ["an_error_names_the_row_of_all_rows"])
m("T43-laying-is-not-timed", P, S + "methods/on_policy.rs", ("        .time(Phase::Data, || labelled(sequences, labels, eos));", "        .time(Phase::Update, || labelled(sequences, labels, eos));"),
  LIB, ["laying_sampled_answers_counts_as_data"])
m("T44-heads-use-without-gradient", P, S + "step.rs", ("Some(grad) => grad + d_head,", "Some(grad) => grad,"),
  LIB, ["a_tied_embedding_has_the_gradients_of_both_its_uses"])
m("T45-validations-rows-of-the-batch", P, S + "step.rs", ("            batch,\n            tokens,\n", "            batch,\n            0,\n"),
  LIB, ["an_error_names_the_term_the_example_and_the_row"])
m("T46-data-thread-does-not-end", P, S + "ahead.rs", ("                break;\n", "                std::thread::park();\n"),
  args(P, "data_thread"), ["it_ends_where_the_training_fails_or_stops"])
m("T47-data-threads-panic-is-another", P, S + "trainer.rs", ("std::panic::resume_unwind(panic)", "{ drop(panic); panic!(\"the data thread ended\") }"),
  args(P, "data_thread"), ["its_panic_is_the_trainings"])
B = dict(batch="training-unit")
m("T16-clip-factor-inverted", P, S + "optim.rs", ("let factor = limit / (norm + 1e-6);", "let factor = norm / (limit + 1e-6);"),
  LIB, ["all_gradients_are_clipped_by_their_norm_together"], **B)
m("T17-last-batch-counts", P, S + "settings.rs",
  ("let whole = (sequences / self.batch_size).max(1);", "let whole = sequences.div_ceil(self.batch_size).max(1);"),
  LIB, ["only_whole_batches_count"], **B)
m("T18-nan-setting-accepted", P, S + "settings.rs", ("if !(value.is_finite() && value > 0.0) {", "if value <= 0.0 {"),
  LIB, ["settings_out_of_range_are_named"], **B)
m("T19-last-best-epoch", P, S + "trainer.rs", ("Some(b) if figure(b) >= figure(r) => best,", "Some(b) if figure(b) > figure(r) => best,"),
  LIB, ["the_first_best_validation_is_kept"], **B)
m("T20-cache-header-not-hashed", P, S + "cache.rs", ("self.sha256 = sha256(rows, &text)?;", "self.sha256 = sha256(rows, &text[..0])?;"),
  LIB, ["what_is_not_its_own_is_refused"], **B)
m("T21-margin-ignored", P, S + "methods/distillm.rs", ("loss >= reference + margin", "loss >= reference + 0.0 * margin"),
  LIB, ["the_threshold_rises_by_a_tenth_when_the_loss_grows_by_the_margin"], **B)
m("T22-fresh-share-rises", P, S + "methods/distillm.rs", ("Self::Decreasing => threshold * (1.0 - done),", "Self::Decreasing => threshold * done,"),
  LIB, ["the_buffer_takes_over_once_full", "distillm_counts_the_first_update_as_1"], **B)
m("T23-buffer-forgets-the-newest", P, S + "methods/replay.rs", ("self.held.pop_front();", "self.held.pop_back();"),
  LIB, ["the_oldest_is_forgotten_and_a_draw_repeats_nothing"], **B)
m("T24-tokens-left-off-by-one", P, S + "methods/minillm.rs",
  ("let left = if settings.length_norm { n - t } else { 1 };", "let left = if settings.length_norm { n - t + 1 } else { 1 };"),
  LIB, ["a_reward_to_go_is_discounted_cut_and_divided_by_the_tokens_left"], **B)
m("T25-mixture-swapped", P, S + "methods/minillm.rs", ("(1.0 / ((1.0 - mix) + mix * ratio)) as f32", "(1.0 / (mix + (1.0 - mix) * ratio)) as f32"),
  LIB, ["an_importance_weight_is_the_student_over_the_mixture"], **B)
m("T26-ppo-takes-the-smaller", P, S + "head.rs", ("if free >= clipped {", "if free <= clipped {"), LIB, ["the_ratio_counts_within_its_clip"], **B)
m("T27-index-within-the-round", P, S + "methods/minillm.rs", ("index: step % batches,", "index: step % round,"),
  LIB, ["rounds_have_inner_epochs_of_whole_batches"], **B)
m("T28-variance-over-n-less-1", P, S + "methods/minillm.rs", ("let variance = (squares + zeros * mean.powi(2)) / n;", "let variance = (squares + zeros * mean.powi(2)) / (n - 1.0);"),
  LIB, ["whitening_gives_mean_0_and_variance_1_with_or_without_the_padding"], **B)
m("T48-distillm-counts-from-0", P, S + "methods/distillm.rs", ("fresh_share(threshold, at.step + 1, at.steps)", "fresh_share(threshold, at.step, at.steps)"),
  LIB, ["distillm_counts_the_first_update_as_1"], **B)
m("T49-warm-up-begins-above-0", P, S + "optim.rs", ("peak * step as f64 / warmup as f64", "peak * (step + 1) as f64 / warmup as f64"),
  args(P, "goldens"), ["learning_rates_are_those_of_the_published_schedulers"])
m("T50-rewards-multiplied", P, S + "methods/minillm.rs", (") / settings.reward_scaling)", ") * settings.reward_scaling)"),
  args(P, "goldens"), ["minillm_has_the_published_rewards_weights_losses_and_gradients"])
m("T51-padding-not-whitened", P, S + "methods/minillm.rs", ("(answers.len() * width).max(advantage.len())", "advantage.len()"),
  args(P, "goldens"), ["minillm_has_the_published_rewards_weights_losses_and_gradients"])
m("T52-minillm-with-dropout", P, S + "trainer.rs", ("if !run.method.trains_with_dropout() {", "if false && !run.method.trains_with_dropout() {"),
  args(P, "methods"), ["minillms_student_has_no_dropout_unless_it_is_asked_for"], batch="training-methods-2")
m("T53-gkds-buffer-not-restored", P, S + "methods/gkd.rs", ("self.buffer = serde_json::from_value(state)?;", "let _: ReplayBuffer<Sequence> = serde_json::from_value(state)?;"),
  args(P, "methods"), ["a_stopped_run_ends_with_the_bits_of_an_undisturbed_one"], batch="training-methods-2")
m("T54-own-adapter-always-merged", "abkd-models", "crates/models/src/lora.rs", ("if config.start == Start::Merge {", "if true {"),
  args(P, "methods"), ["the_initialised_students_adapter_is_trained_on_or_merged"], batch="training-methods-2")
m("T29-method-id", P, S + "methods/mod.rs", ('            "abkd" => {', '            "ab" => {'), LIB, ["every_id_builds_with_defaults"], **B)
m("T30-minillm-takes-any-loss", P, S + "methods/mod.rs", ('"minillm" => {\n                no_loss(loss)?;', '"minillm" => {'),
  LIB, ["what_a_method_does_not_have_is_refused_by_name"], **B)
m("T31-official-labels-in-time", P, S + "methods/on_policy.rs", ("move |t| (start + t, s.tokens[t])", "move |t| (start + t - 1, s.tokens[t])"),
  LIB, ["official_labels_sit_one_position_late"], **B)
m("T32-policy-gradient-sign", P, S + "head.rs",
  ("let grad = ce.grad * slopes.neg().unsqueeze_dim::<2>(1);", "let grad = ce.grad * slopes.unsqueeze_dim::<2>(1);"),
  LIB, ["a_good_token_is_made_more_likely", "a_policys_rows_keep_their_numbers_over_the_chunks"])
m("T33-kd-and-ce-gradients-swapped", P, S + "head.rs",
  ("ce_grad * rest + kd_grad * *kd_ratio", "ce_grad * *kd_ratio + kd_grad * rest"), LIB, ["chunks_have_the_loss_and_the_gradients_of_the_whole"])
m("T34-alphanet-of-several-chunks", P, S + "head.rs", ("let divergence = if sums[1] > sums[0] {", "let divergence = if sums[1] < sums[0] {"),
  LIB, ["alpha_net_chooses_for_the_whole_batch_or_row_by_row"])
m("T35-weight-decay-none-at-all", P, S + "optim/fused.rs",
  ("keep: (1.0 - lr * f64::from(self.weight_decay)) as f32,", "keep: (1.0 - 0.0 * lr * f64::from(self.weight_decay)) as f32,"),
  args(P, "lib", "trajectory"), ["it_is_burns_bit_by_bit"])

# ---------------------------------------------------------------- metrics
P, S = "abkd-metrics", "crates/metrics/src/"
LG, LIB = args(P, "lib", "golden"), args(P, "lib")
SCORES, CORPUS, TOKENS = "scores_are_those_of_rouge_score", "corpus_totals_are_those_of_rouge_score", "tokens_are_those_of_rouge_score"
m("E01-words-of-three-stemmed", P, S + "rouge.rs", ("if word.len() > 3 {", "if word.len() >= 3 {"),
  LG, ["accents_separate_and_short_words_are_not_stemmed", TOKENS])
m("E02-precision-over-the-reference", P, S + "rouge.rs",
  ("let precision = common / prediction.len() as f64;", "let precision = common / reference.len() as f64;"),
  LG, ["by_hand", SCORES, CORPUS, "scores_are_bounded_and_swap_with_the_roles", "verification_finds_a_wrong_value"])
m("E03-harmonic-mean-without-2", P, S + "rouge.rs",
  ("2.0 * precision * recall / (precision + recall)\n    } else", "precision * recall / (precision + recall)\n    } else"),
  LG, ["by_hand", "a_text_equals_itself", "a_corpus_is_the_mean_of_its_best_scores", SCORES, CORPUS])
m("E04-carry-dropped", P, S + "rouge.rs", ("carry = carry_1 | carry_2;", "carry = carry_1 & carry_2;"),
  LIB, ["the_longest_common_subsequence_is_that_of_the_table"])
m("E05-worst-reference", P, S + "rouge.rs", (".fold(0.0, f64::max)", ".fold(1.0, f64::min)"),
  LG, ["the_best_reference_counts", "a_corpus_is_the_mean_of_its_best_scores", CORPUS])
m("E06-measure-over-0", P, S + "porter.rs", ("fn m_over_1(stem: &[u8]) -> bool {\n    measure(stem) > 1", "fn m_over_1(stem: &[u8]) -> bool {\n    measure(stem) > 0"),
  LIB, ["stems_are_those_of_nltk"])
m("E07-y-the-other-way", P, S + "porter.rs", ("before_run == run.is_multiple_of(2)", "before_run != run.is_multiple_of(2)"),
  LIB, ["stems_are_those_of_nltk", "one_letter_is_judged_as_in_the_pass"])
m("E08-s-becomes-ss", P, S + "porter.rs", ('("s", "", always),', '("s", "ss", always),'),
  LG, ["stems_are_those_of_nltk", "a_stem_is_neither_empty_nor_longer", TOKENS])
m("E09-quadratic-measure", P, S + "porter.rs", ("for consonant in consonants(stem) {", "for consonant in (0..stem.len()).map(|i| is_consonant(stem, i)) {"),
  args(P, "lib") , ["long_runs_of_y_are_linear"], timeout_counts=True)
m("E10-words-joined-by-a-hyphen", P, S + "exact_match.rs", ('words.join(" ")', 'words.join("-")'),
  LIB, ["case_punctuation_and_space_do_not_count", "normalisation_is_idempotent"])
m("E11-standard-deviation-over-n", P, S + "stats.rs", ("(squares / (values.len() - 1) as f64).sqrt()", "(squares / values.len() as f64).sqrt()"),
  LIB, ["moments_and_quartiles_by_hand"])
m("E12-std-of-one-value", P, S + "stats.rs", (".filter(|_| values.len() > 1)", ".filter(|_| values.len() > 0)"), LIB, ["the_undefined_is_none"])
m("E13-tied-ranks-off-by-half", P, S + "stats.rs", ("(equal.len() + 1) as f64 / 2.0", "equal.len() as f64 / 2.0"),
  LIB, ["rank_statistics_by_hand", "ties_keep_the_sum_of_ranks_and_the_bounds"])
m("E14-discordant-pairs-concordant", P, S + "stats.rs", ("i8::from(x > y) - i8::from(x < y)", "i8::from(x > y) + i8::from(x < y)"),
  LIB, ["correlations_see_order_alone", "rank_statistics_are_those_of_scipy", "rank_statistics_by_hand"])
m("E15-quartile-from-the-upper-neighbour", P, S + "stats.rs", ("low + (high - low) * at.fract()", "high + (high - low) * at.fract()"),
  LIB, ["moments_and_quartiles_by_hand", "quartiles_lie_in_order"])
m("E16-short-lists-accepted", P, S + "verify.rs", ("list.len() != expected", "list.len() > expected"),
  args(P, "golden"), ["broken_files_are_errors_that_name_the_place"])

# ---------------------------------------------------------------- data
P, S = "abkd-data", "crates/data/src/"
LIB = args(P, "lib")
ALLD = args(P, "lib", "corpus", "dolly")
m("D01-part-begins-one-target-late", P, S + "batch.rs", (".take_while(|(at, _)| at / self.width < end)", ".take_while(|(at, _)| at / self.width <= end)"),
  LIB, ["parts_hold_the_same_targets_and_less_padding"])
m("D02-part-keeps-the-wide-row", P, S + "batch.rs", ("(row * width + column, *label)", "(row * self.width + column, *label)"),
  ["-p", P, "-p", "abkd-training", "--lib", "--test", "methods"], ["parts_hold_the_same_targets_and_less_padding", PARTS],
  probe="no test splits into parts of two or more rows that are narrower than the whole (the toy's sequences all have 7 tokens)")
m("D03-a-batch-too-many", P, S + "batch.rs", ("order.truncate(order.len() / batch_size * batch_size);", "order.truncate(order.len().div_ceil(batch_size) * batch_size);"),
  LIB, ["an_epoch_is_a_choice_without_repetition"])
m("D04-end-of-text-dropped", P, S + "encode.rs", (".chain([eos])", ".chain([eos; 0])"),
  ALLD, ["prompt_and_sequence_are_cut", "packing_is_encoding", "dolly_has_the_published_token_counts",
         "dolly_packs_into_the_published_number_of_values", "the_sets_differ_as_the_papers_do"])
m("D05-offsets-in-tokens", P, S + "indexed.rs", ("offset += 2 * i64::from(size);", "offset += i64::from(size);"),
  ALLD, ["documents_read_back", "the_bytes_are_the_published_formats", "slices_are_written_as_they_come",
         "a_document_is_a_sequence_once_more", "packing_is_encoding", "lines_are_the_texts",
         "dolly_packs_into_the_published_number_of_values"])
m("D06-i32-separator-not-read", P, S + "indexed.rs", ("u32::MAX => SEPARATOR.into(),", "u32::MAX => u32::MAX,"), LIB, ["i32_files_are_read"], batch="data-indexed")
m("D07-header-length-unchecked", P, S + "indexed.rs", ("if index.len() < HEADER {", "if index.len() < MAGIC.len() {"),
  LIB, ["a_damaged_index_is_refused_or_read", "damaged_files_are_refused_by_name"], batch="data-indexed")
m("D08-partial-files-stay", P, S + "indexed.rs", ("if written.is_err() {", "if written.is_ok() {"), LIB, ["what_cannot_be_written_leaves_nothing"], batch="data-indexed")
m("D09-vocabulary-one-too-large", P, S + "indexed.rs", ("if size >= usize::from(SEPARATOR) {", "if size > usize::from(SEPARATOR) {"),
  LIB, ["a_large_vocabulary_does_not_fit"], batch="data-indexed")
m("D10-an-end-alone-is-a-response", P, S + "indexed.rs", ("response.filter(|r| r.len() > 1)?", "response.filter(|r| !r.is_empty())?"),
  LIB, ["a_document_is_a_sequence_once_more", "packing_is_encoding"])
m("D29-end-stays-in-the-line", P, S + "indexed.rs", ("ids.strip_suffix(&[tokenizer.eos()]).unwrap_or(ids)", "ids"),
  LIB, ["the_end_that_closes_a_text_is_not_in_its_line"])
m("D11-line-numbers-from-0", P, S + "jsonl.rs", ("line: index + 1,", "line: index,"), LIB, ["a_bad_line_is_named"])
m("D12-blank-lines-are-errors", P, S + "jsonl.rs", ("line.iter().all(u8::is_ascii_whitespace)", "line.iter().any(u8::is_ascii_whitespace)"),
  LIB, ["strings_and_lists_are_read"])
m("D13-template-part-missing", P, S + "tokenizer.rs", ("            INSTRUCTION,\n            INPUT,\n            RESPONSE,", "            INSTRUCTION,\n            RESPONSE,"),
  LIB, ["the_template_costs_a_token_a_part"])
m("D14-end-of-text-name", P, S + "tokenizer.rs", ('= ["<|endoftext|>", "</s>"', '= ["<|end|>", "</s>"'),
  ALLD, ["a_saved_tokenizer_reads_back", "dolly_has_the_published_token_counts", "dolly_packs_into_the_published_number_of_values"])
m("D15-prompts-may-repeat", P, S + "corpus/mod.rs", ("if seen.insert(prompt(&example)) {", "if seen.insert(prompt(&example)) || number > 0 {"),
  args(P, "corpus"), ["no_prompt_occurs_twice"])
m("D16-draws-depend-on-the-training-size", P, S + "corpus/mod.rs",
  ("Rng::new(&[seed, number])", "Rng::new(&[seed, number, sizes.train as u64])"),
  args(P, "corpus"), ["test_prompts_do_not_depend_on_the_training_size"])
m("D17-two-spaces", P, S + "corpus/families.rs", ('told.join(" ")', 'told.join("  ")', 0), args(P, "corpus"), ["every_text_survives_the_tokenizer"])
m("D18-other-wording-overlaps", P, S + "corpus/families.rs", ("Wording::Other => 2 + rng.below(2)", "Wording::Other => 1 + rng.below(2)"), args(P, "corpus"), ["the_sets_differ_as_the_papers_do"])
H = args(P, "hub")
m("D19-hash-compared-with-case", P, S + "hub.rs", ("(!found.eq_ignore_ascii_case(hash))", "(found != hash)"), H, ["a_file_is_fetched_once"])
m("D20-revision-ignored", P, S + "hub.rs", ("let revision = request.revision.as_deref().unwrap_or(BRANCH);", "let revision = BRANCH;"),
  H, ["several_files_come_from_a_tag_of_a_model"])
m("D21-longer-is-broken-off", P, S + "hub.rs", ("if len < total {", "if len > total {"), H,
  ["a_broken_transfer_goes_on_where_it_was", "a_server_without_ranges_is_found_out"])
m("D22-complete-part-left", P, S + "hub.rs", ("f.set_len(total - 1)", "f.set_len(total)"), H, ["parts_of_killed_programs_do_not_block"])
m("D23-announced-hash-unchecked", P, S + "hub.rs", ("let wanted = file.sha256.as_deref().or(stated(blob));", "let wanted = file.sha256.as_deref();"),
  H, ["a_wrong_hash_or_size_never_reaches_the_target"])
m("D24-target-overwritten", P, S + "hub.rs", ("if target.exists() {", "if false && target.exists() {"), H, ["a_wrong_file_in_the_target_is_left_alone"])
m("D25-cache-taken-unchecked", P, S + "hub.rs", ("if fault(&blob, file.size, wanted)?.is_none() && !is_page(&blob)? {",
  "if (wanted.is_none() || wanted.is_some()) && !is_page(&blob)? {"), H, ["a_damaged_cache_is_fetched_anew"])
m("D26-page-taken-for-the-file", P, S + "hub.rs", ('if is_page(blob)? && !file.name.ends_with(".html") {', 'if is_page(blob)? && file.name.ends_with(".html") {'),
  H, ["refusals_say_what_to_do"])
m("D27-parent-folders-allowed", P, S + "hub.rs", ("let inside = |c| matches!(c, Component::Normal(_));", "let inside = |c| matches!(c, Component::Normal(_) | Component::ParentDir);"), H, ["no_name_leads_out_of_the_target"])
m("D28-no-network-is-a-broken-transfer", P, S + "hub/explain.rs",
  ("{what}: {endpoint} cannot be reached ({t});", "{what}: {endpoint} broke off ({t});"), H, ["no_network_is_named"])

# ---------------------------------------------------------------- experiments (cheap ones)
P, S = "abkd-experiments", "experiments/src/"
m("X01-pooled-deviation", P, S + "compare.rs", ("((a * a + b * b) / 2.0).sqrt()", "(a * a + b * b).sqrt()"), args(P, "lib"), ["leads_by_hand"], batch="experiments")
m("X02-one-worker-more", P, S + "estimate/schedule.rs", ("while running.len() < jobs {", "while running.len() <= jobs {"),
  args(P, "lib"), ["cells_wait_for_what_they_need_and_for_a_worker"], batch="experiments")
m("X03-any-error-is-tolerated", P, S + "main.rs", ("let ok = check.error <= check.tolerance;", "let ok = check.error <= check.tolerance || check.error.is_finite();"),
  ["-p", P, "--test", "cli", "goldens_are_verified"], ["goldens_are_verified_and_a_wrong_one_fails"])

# ---------------------------------------------------------------- host (all else is built on it: last)
P, S = "abkd-host", "crates/host/src/"
m("H01-softplus-sign", P, S + "math.rs", ("(-x).max(0.0) + tail,", "x.min(0.0) + tail,"), args(P, "lib"), ["elementary_functions_are_accurate"])
m("H02-nan-hidden-by-max", P, S + "math.rs", ("exp_in_range(if -88.0 > x { -88.0 } else { x })", "exp_in_range(x.max(-88.0))"),
  args(P, "lib"), ["elementary_functions_are_accurate"])
