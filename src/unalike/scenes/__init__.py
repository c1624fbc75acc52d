"""Questions about coloured shapes, real data brought into the same form, and the models that are trained on them here.

    python -m unalike.scenes domains FOLDER       five clients, each with a visual style of its own
    python -m unalike.scenes functions FOLDER     five clients, each with a kind of question of its own
    python -m unalike.scenes reports FOLDER       five clients with pictures and reports, of whom two are to lack one
    python -m unalike.scenes easy-vqa FOLDER      the package easy-vqa, divided by kind of question
    python -m unalike.scenes blood FOLDER SOURCE  questions about whole blood images with boxes of their cells
    python -m unalike.scenes model [FOLDER]       train `vl:tiny`; without a folder into the cache
    python -m unalike.scenes two-tower [FOLDER]   train the fusion of `vl:two-tower`; without a folder into the cache

All data are folders as docs/data.md describes them, with a README.md that says how they were made. `world` draws the
scenes, `questions` asks about them, `folders` and `real` write folders, `model` and `two_tower` train.

Both models learn from a neutral mixture: scenes in the style "neutral", asked in the phrasings `questions.NEUTRAL`. It
knows a further kind of question, and a third of the pairs of colour and shape never occur in it. Clients' scenes have
all pairs, are asked in `questions.OURS`, and have styles that the mixture has not. So a frozen model with a new head
can answer a part, and has to be adapted for the rest: to what all clients share (the pairs, the phrasings), and
to a style that is one client's.
"""
